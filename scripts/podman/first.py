"""The first process of a PID namespace: runs a command, reaps every orphan meanwhile (podman
waits until conmon is gone), and ends, and everything with it, when the command does."""
import os, sys

command = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
while True:
    pid, status = os.wait()
    if pid == command:
        sys.exit(abs(os.waitstatus_to_exitcode(status)))
