"""An agent: reads messages from its stdin and writes each to its log. It leaves a helper behind."""

import os
import select
import signal
import sys

log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
ended = False


def end(*_):
    global ended
    ended = True


signal.signal(signal.SIGTERM, end)
wake, poke = os.pipe()
os.set_blocking(poke, False)
signal.set_wakeup_fd(poke)
os.posix_spawnp("sleep", ["sleep", "1000"], os.environ, setsid=True)  # half the start is what subprocess takes
print("ready", flush=True)
while True:
    # Told to end, it takes what is there and does not wait for more.
    readable, _, _ = select.select([0] if ended else [0, wake], [], [], 0 if ended else None)
    if 0 in readable:
        messages = os.read(0, 1 << 16)
        if not messages:
            break
        os.write(log, messages)
        print(messages.count(b"\n"), "messages", flush=True)
    elif ended:
        break
