"""What MLproject runs: the same program as the command `vitcifar`."""

from vitcifar.cli import main

if __name__ == "__main__":
    main()
