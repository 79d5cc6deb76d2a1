"""``python -m agentrun_server``: the same as the script ``agentrun-server``."""

from agentrun_server.cli import main

if __name__ == "__main__":
    main(prog_name="python -m agentrun_server")
