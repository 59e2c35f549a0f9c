"""The commands of the stormfast program: one file each, named here, with its line of `stormfast --help`.

A file has a docstring, which is the help text of its command; a frozen dataclass Config, which is its arguments;
run(config) -> exit status; and perhaps check(config), which refuses bad values before anything is loaded. It does not
parse, does not catch UserError, and imports torch only inside run. Ideas live elsewhere. `train` alone, whose defaults
depend on its arguments, has main(args) instead of run and reads them itself.
"""

COMMANDS: dict[str, tuple[str, str]] = {  # name: (what it does, an example)
    "train": ("train an agent", "stormfast train --game Pong"),
    "evaluate": ("score a run's agent", "stormfast evaluate runs/Pong/DATE-TIME --episodes 100"),
    "score": ("score runs together, beside published scores", "stormfast score runs/DATE-TIME --baselines storm,iris"),
    "dream": ("film what a run's world model imagines", "stormfast dream runs/Pong/DATE-TIME -o dream.gif"),
    "diagnose": ("say what a run's world model sees", "stormfast diagnose runs/Pong/DATE-TIME"),
    "study": ("compare settings over games and seeds", "stormfast study agent-state --games Pong,Boxing --seeds 3"),
    "profile": ("time the phases of a step", "stormfast profile --preset storm --steps 10"),
    "games": ("list the games, with random and human scores", "stormfast games"),
    "doctor": ("say what is installed, what will be used, and why", "stormfast doctor"),
}
