"""The command `stop`: interrupts a job cleanly and waits for it to end."""

import time

import typer

from cluster.cli import AddressOption, IdArgument, command, connect, print_message

#: Seconds for Ray to notice the end, beyond the job's own time limit.
_GRACE = 30
_MESSAGE_EVERY = 10.0


def stop(job: IdArgument, address: AddressOption = None) -> None:
    """Stop a job cleanly, and wait until it has ended.

    It is interrupted as by Ctrl-C: what was finished is kept. Only if it takes
    longer than 120 s (or the RAY_JOB_STOP_WAIT_TIME_S that `submit` was given
    with --env) is it killed; even then nothing that was finished is lost.
    Submitting the same command again resumes it.
    """
    from captioning.errors import UnfinishedError
    from cluster.jobs_api import UnreachableError

    api = connect(address)
    found = api.job(job)
    if found.over:
        print_message(f"Job {job} has already ended. {api.redact(found.outcome())}")
        return
    api.stop(job)
    print_message(f"Asked job {job} to stop; it has up to {found.stop_wait} s to finish writing.")
    began = last_message = time.monotonic()
    try:
        while True:
            time.sleep(0.5)
            now = time.monotonic()
            try:
                found = api.job(job)
            except UnreachableError:
                if now - began > found.stop_wait:
                    raise
            if found.over:
                break
            if now - began > found.stop_wait + _GRACE:
                raise UnfinishedError(
                    f"Job {job} is still {found.state_text} {now - began:.0f} s after it was asked to stop. See "
                    f"{command(f'status {job}', address)}"
                )
            if now - last_message > _MESSAGE_EVERY:
                last_message = now
                print_message(f"Still stopping after {now - began:.0f} s.")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Job {job} was asked to stop and is stopping.\n  show its state:  {command(f'status {job}', address)}"
        ) from None
    print_message(api.redact(found.outcome()))
    if found.state == "FAILED":
        raise typer.Exit(found.code or 0)
