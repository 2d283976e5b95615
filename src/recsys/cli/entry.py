"""Run a subcommand: compose its configuration, check it, and report a user's error in one line."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from recsys.cli.commands import Command
from recsys.cli.preflight import check_places, check_run_folder
from recsys.core.conf_folder import conf_folder
from recsys.core.errors import UserError
from recsys.core.trust import name_targets, trust
from recsys.experiments.compose import compose_command, compose_job
from recsys.experiments.conf_files import readable, reference, search_path
from recsys.experiments.config_check import check
from recsys.experiments.multirun import note_failure
from recsys.experiments.override_check import checked
from recsys.experiments.overrides import CONFIG_DIR, quoted
from recsys.release.signing import REQUIRE_SIGNATURE, SIGN_KEY

# Exit code of a command that Ctrl-C or SIGTERM ended.
INTERRUPTED = 130
# Errors of the operating system about a file or folder that the user named.
_OF_PLACES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


def run_command(command: Command, arguments: list[str]) -> None:
    """Run a subcommand with its arguments.

    Args:
        command: the subcommand.
        arguments: `key=value`, options of Hydra, and values of `command.words`.

    Raises:
        SystemExit: If the command ends with another exit code than 0.
    """
    logging.getLogger("recsys").setLevel(logging.INFO)
    # At INFO faiss reports each build of itself that is not installed, which reads like a failure.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    try:
        words = with_keys(command, signing(trusting(arguments)))
        if not command.is_job:
            _interrupt_on_sigterm()
        module = importlib.import_module(f"recsys.cli.{command.config_name}")
        with _names_extra(command):
            # The command separates its own keys from those that it passes on to training.
            if command.name == "sweep":
                module.main(words)
            elif command.is_job:
                _run_job(command, words, module.main)
            else:
                config = compose_command(command.config_name, words)
                check_places(command.name, config)
                module.main(config)
    except (UserError, OmegaConfBaseException, OSError) as error:
        _fail_with(error)


def trusting(arguments: list[str]) -> list[str]:
    """Trust the packages of `trust=[PACKAGE,...]`, which every command takes, and return the other arguments."""
    given = [word for word in arguments if re.match(r"\+{0,2}trust=", word)]
    for word in given:
        names = word.partition("=")[2].strip("[]").split(",")
        trust(name.strip(" '\"") for name in names if name.strip())
    return [word for word in arguments if word not in given]


def signing(arguments: list[str]) -> list[str]:
    """Set the keys of `sign_key=` and `require_signature=`, which every command takes; return the other arguments."""
    for word in arguments:
        key, is_given, value = word.lstrip("+").partition("=")
        if is_given and key in ("sign_key", "require_signature"):
            name = SIGN_KEY if key == "sign_key" else REQUIRE_SIGNATURE
            path = value.strip(" '\"")
            # Absolute, because jobs may change the folder.
            os.environ[name] = os.path.abspath(path) if path not in ("", "null") else ""
    return [word for word in arguments if not re.match(r"\+{0,2}(sign_key|require_signature)=", word)]


def with_keys(command: Command, arguments: list[str]) -> list[str]:
    """Return the arguments with `key=value` instead of values without a key.

    Args:
        command: the subcommand, which names the key.
        arguments: words of the command line.

    Raises:
        UserError: If a word is not an override, and the command does not accept such words.
    """
    if command.is_job:
        # Words after the first one may be values of Hydra's options.
        first = arguments[0] if arguments and _is_plain("", arguments[0]) and command.words else None
        return arguments if first is None else [f"{command.words}={quoted(first)}", *arguments[1:]]
    plain = [word for before, word in _pairs(arguments) if _is_plain(before, word)]
    others = [word for before, word in _pairs(arguments) if not _is_plain(before, word)]
    if not plain:
        return others
    if command.takes_several:
        return [f"{command.words}=[{','.join(map(quoted, plain))}]", *others]
    keys = (command.words, *command.operands.get(plain[0], ())) if command.words else ()
    if command.operands and plain[0] not in command.operands and plain[0] != "list":
        # The command refuses its first word, with the nearest valid one.
        return [f"{command.words}={quoted(plain[0])}", *others]
    if len(plain) > len(keys):
        raise UserError(f"{plain[-1]}: expected KEY=VALUE; recsys {command.name} --help lists the keys")
    return [*(f"{key}={quoted(word)}" for key, word in zip(keys, plain, strict=False)), *others]


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    return zip(["", *words], words, strict=False)


def _is_plain(before: str, word: str) -> bool:
    return "=" not in word and not word.startswith(("-", "~", "+")) and before not in CONFIG_DIR


def _run_job(command: Command, words: list[str], main: Callable[[DictConfig], None]) -> None:
    words = checked(command.config_name, words)
    given = sys.argv
    own = [word for before, word in _pairs(words) if not {before, word.partition("=")[0]} & {*CONFIG_DIR}]
    own = [word for word in own if "hydra.searchpath" not in word]
    if not any(word.startswith("-") for word in own):
        config, folder = compose_job(command.config_name, [*own, *search_path(words)])
        check_places(command.name, config)
        check_run_folder(folder)

    @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=command.config_name)
    def job(config: DictConfig) -> None:
        # Lightning starts further processes with the arguments of this one.
        sys.argv = given
        task = HydraConfig.get()
        try:
            if task.mode is RunMode.MULTIRUN:
                # The sweeper may have chosen values that were not known before.
                path = search_path(task.overrides.hydra)
                check(config, reference(command.config_name, task.runtime.choices, search_path=path))
                check_places(command.name, config)
            name_targets(config)
            # Hydra would report the error in its own way.
            with _names_extra(command):
                main(config)
        except (UserError, OmegaConfBaseException, OSError) as error:
            if task.mode is not RunMode.MULTIRUN:
                _fail_with(error)
            # The other runs of a multirun go on; the command fails at its end.
            with contextlib.suppress(SystemExit):
                _fail_with(error)
            note_failure(Path(task.sweep.dir), task.job.num)
        except SystemExit as stop:
            # Lightning exits without a code when SIGTERM interrupts training.
            raise SystemExit(128 + signal.SIGTERM if stop.code is None else stop.code) from stop
        except KeyboardInterrupt as stop:
            folder = Path(output_dir())
            has_begun = any((folder / name).exists() for name in ("run.json", "variants"))
            hint = f"; type the same command with hydra.run.dir={folder} to continue"
            print("interrupted" + hint * has_begun, file=sys.stderr)
            raise SystemExit(INTERRUPTED) from stop
        finally:
            # Another process of the run may do the same at this moment.
            with contextlib.suppress(FileNotFoundError):
                forget_unused(Path(output_dir()))

    # Hydra reads the arguments of the process.
    sys.argv = [given[0], *words]
    try:
        job()
    finally:
        sys.argv = given


def forget_unused(folder: Path) -> None:
    """Remove the folder of a run that failed before it wrote anything, unless another process trains in it."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    if folder.absolute() == Path.cwd() or any(file.parts[0] != ".hydra" and file.name != ".lock" for file in files):
        return
    with contextlib.ExitStack() as stack:
        # The lock is that of `recsys.experiments.run_lock`, which imports too much for this module.
        if (folder / ".lock").exists():
            lock = stack.enter_context((folder / ".lock").open())
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        shutil.rmtree(folder)
    for above in folder.parents:
        if above == Path.cwd() or any(above.iterdir()):
            return
        above.rmdir()


def _fail_with(error: Exception) -> NoReturn:
    """Report an error that the user can mend; raise any other."""
    if not isinstance(error, OSError):
        fail(readable(error))
    if error.errno not in _OF_PLACES or error.filename is None:
        raise error
    fail(f"{error.filename}: {str(error.strerror).lower()}")


@contextmanager
def _names_extra(command: Command) -> Iterator[None]:
    """Say what to install if a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "recsys":
            raise
        fail(
            f"recsys {command.name} needs the package '{package}', which is not installed: "
            f"pip install 'recsys[{command.extra}]'"
        )


def output_dir() -> str:
    """Return the folder of this run, `hydra.run.dir`."""
    return str(HydraConfig.get().runtime.output_dir)


def _interrupt_on_sigterm() -> None:
    """Make SIGTERM end the command as Ctrl-C does."""

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def fail(message: str) -> NoReturn:
    """Print the message as an error and exit with 1."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)
