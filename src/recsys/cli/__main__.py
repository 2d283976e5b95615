"""`python -m recsys.cli SUBCOMMAND ...`, the same as the console command `recsys`."""

from recsys.cli.main import main

if __name__ == "__main__":
    main()
