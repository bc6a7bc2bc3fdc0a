"""What MLproject runs: the same program as the command `vitcifar`."""

from vitcifar.cli import main
from vitcifar.cli.mlproject import change_to_launch_folder

if __name__ == "__main__":
    change_to_launch_folder()
    main()
