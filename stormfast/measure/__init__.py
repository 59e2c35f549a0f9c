"""What a step asks of a device and how long it takes: counted operators, peaks, phases."""
