"""`istio-init bootstrap`: print the file that Envoy starts from."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import click

from istio_init.bootstrap import FLAVOURS, render_bootstrap
from istio_init.bootstrap.settings import OPTIONS, ROLES, ProxySettings, parse_proxy_settings
from istio_init.cli.log import Level, Log
from istio_init.cli.options import Function, TextValue, decorate
from istio_init.errors import CommandError, InvalidInput
from istio_init.runner import Command, run_all

VALIDATION_PATIENCE = 60.0  # seconds

EPILOG = """\b
Examples:
  istio-init bootstrap --ip 10.1.1.1 --serviceCluster productpage --discoveryAddress istio-pilot.istio-system:15007
  istio-init bootstrap --ip 10.1.1.1 --bootstrap-override mine.yaml --check -o envoy.json

\b
Variables: INSTANCE_IP, POD_NAME, POD_NAMESPACE, ISTIO_NAMESPACE; each ISTIO_META_X becomes metadata X of the node,
and the members of each ISTIO_METAJSON_* (a JSON object) become metadata too.
"""


def proxy_options(command: Function) -> Function:
    """Add the flags of Istio 1.0's `pilot-agent proxy`; what is not given arrives as None."""
    return decorate(
        command,
        [
            click.option(
                f"--{option.name}",
                option.name,
                type=TextValue(),
                metavar=option.metavar,
                help=option.help + (f" Default: {option.default}." if option.default else ""),
            )
            for option in OPTIONS
        ],
    )


@click.command(epilog=EPILOG)
@click.argument("role", default=ROLES[0], metavar=f"[{'|'.join(ROLES)}]")
@proxy_options
@click.option(
    "--envoy-api", type=click.Choice(list(FLAVOURS)), default="v3", help="v2 is for an Envoy of Istio 1.0. Default: v3."
)
@click.option("--bootstrap-override", metavar="FILE", help="JSON or YAML that is laid over the result, lists by `name`.")
@click.option("-o", "--output", metavar="FILE", help="Write to this file instead of standard output.")
@click.option("--check", is_flag=True, help="Let the Envoy on the PATH, if there is one, validate the result.")
def bootstrap(role: str, **options: Any) -> None:  # noqa: ANN401 - click passes each option by its name
    """Print the bootstrap file of a pod's Envoy: who it is, its administration port, and its control plane."""
    log = click.get_current_context().find_root().obj = Log()
    settings = parse_proxy_settings(role, options, os.environ, _first_address(options))
    text = _text(settings, options["envoy_api"], options["bootstrap_override"])
    if options["check"]:
        _validate(text, log)
    if options["output"] is None:
        click.echo(text, nl=False)
    else:
        _write(Path(options["output"]), text)


def _first_address(values: dict[str, str | None]) -> str:
    if values["ip"] or os.environ.get("INSTANCE_IP"):
        return ""
    from istio_init.routing import first_address  # noqa: PLC0415 - pyroute2 is dear to import, and pods have INSTANCE_IP

    return first_address()


def _text(settings: ProxySettings, flavour: str, override: str | None) -> str:
    if settings.custom_config_file and override:
        problem = "a custom file is used as it is, and --bootstrap-override would have no effect"
        raise InvalidInput("--customConfigFile", problem, "one of the two")
    if settings.custom_config_file:
        return _read(settings.custom_config_file, "--customConfigFile")
    return render_bootstrap(settings, flavour, _load(override) if override else None)


def _load(path: str) -> dict[str, Any]:
    """Read an override; YAML is a superset of JSON."""
    import yaml  # noqa: PLC0415 - most pods have no override

    text = _read(path, "--bootstrap-override")
    try:
        loaded = json.loads(json.dumps(yaml.safe_load(text), allow_nan=False))
    # The parser lets through whatever a value's own constructor raises.
    except (yaml.YAMLError, ArithmeticError, AttributeError, RecursionError, TypeError, ValueError) as error:
        problem = f"{path!r} cannot be read as JSON or YAML: {error}"
        raise InvalidInput("--bootstrap-override", problem, "one object of JSON values") from None
    if not isinstance(loaded, dict):
        raise InvalidInput("--bootstrap-override", f"{path!r} is not an object", "an object, such as {admin: …}")
    return loaded


def _read(path: str, flag: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidInput(flag, f"cannot read {path!r}: {error}", "the path of a readable text file") from None


def _write(path: Path, text: str) -> None:
    """Write a whole file or none: a reader never sees half of it."""
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")  # a device or a pipe must stay what it is
            return
        _replace(path.resolve(), text)
    except OSError as error:
        raise InvalidInput(
            "--output", f"cannot write {str(path)!r}: {error}", "a file in a directory that is there"
        ) from None


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _validate(text: str, log: Log) -> None:
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".json") as file:
        file.write(text)
        file.flush()
        command = Command(("envoy", "--mode", "validate", "--log-level", "error", "-c", file.name))
        (result,) = run_all([command], VALIDATION_PATIENCE, log.debug)
    if result.missing:
        log.write(Level.WARNING, "there is no envoy on the PATH, so the bootstrap was not validated")
    elif result.status != 0:
        raise CommandError(result.argv, result.status, result.stderr, "change what its message names")
