"""The command `stop`: a clean interrupt of a job, waited for."""

import time

import typer

from cluster.cli import AddressOption, IdArgument, command, connect, tell

#: Seconds beyond the job's own time to end in, for Ray to notice.
_GRACE = 30
_TELL_EVERY = 10.0


def stop(job: IdArgument, address: AddressOption = None) -> None:
    """Stop a job the clean way, and wait until it has ended.

    It is interrupted as by Ctrl-C: what was finished is kept. Only if it takes
    longer than 120 s (or the RAY_JOB_STOP_WAIT_TIME_S that `submit` was given
    with --env) is it killed; even then nothing that was finished is lost.
    Submitting the same again goes on where it was.
    """
    from captioning.errors import UnfinishedError
    from cluster.jobs_api import UnreachableError

    api = connect(address)
    found = api.job(job)
    if found.over:
        tell(f"Job {job} is over already. {api.hide(found.ending())}")
        return
    api.stop(job)
    tell(f"Asked job {job} to stop; it has up to {found.stop_wait} s to finish what it writes.")
    began = told = time.monotonic()
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
                    f"Job {job} has not ended {now - began:.0f} s after it was asked to: it is {found.word}. See "
                    f"{command(f'status {job}', address)}"
                )
            if now - told > _TELL_EVERY:
                told = now
                tell(f"Still ending, {now - began:.0f} s.")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Job {job} was asked to stop, and does so.\n  see: {command(f'status {job}', address)}"
        ) from None
    tell(api.hide(found.ending()))
    if found.state == "FAILED":
        raise typer.Exit(found.code or 0)
