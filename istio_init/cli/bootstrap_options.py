"""Shared by `bootstrap` and `proxy`: rendering the bootstrap file that their flags ask for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.core.errors import InvalidInput
from istio_init.core.files import read_text
from istio_init.core.option import read_values
from istio_init.sidecar.bootstrap import FILE_OPTIONS, render_bootstrap
from istio_init.sidecar.bootstrap.settings import ProxySettings, parse_proxy_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLES = """\b
Variables: INSTANCE_IP, POD_NAME, POD_NAMESPACE, ISTIO_NAMESPACE; each ISTIO_META_X becomes node metadata X,
and the members of each ISTIO_METAJSON_* (a JSON object) become node metadata.
"""


class BootstrapRequest(NamedTuple):
    """A requested bootstrap file.

    Attributes:
        settings: the proxy's settings.
        flavour: `v3` or `v2`.
        override: the user's override, or None.
    """

    settings: ProxySettings
    flavour: str
    override: dict[str, Any] | None

    @classmethod
    def of(cls, given: Mapping[str, Any], environ: Mapping[str, str]) -> BootstrapRequest:
        """Read the options of `istio_init.sidecar.bootstrap.BOOTSTRAP_OPTIONS`, and the proxy's environment.

        Raises:
            InvalidInput: a value is not allowed; the first one is reported.
        """
        values = read_values(FILE_OPTIONS, given)
        settings = parse_proxy_settings(values["role"], given, environ, _first_address(given, environ))
        override = values["bootstrap_override"]
        if settings.custom_config_file and override:
            problem = "a custom file is used unchanged, so --bootstrap-override would have no effect"
            raise InvalidInput("--customConfigFile", problem, "one of the two")
        return cls(settings, values["envoy_api"], _load(override) if override else None)

    def text(self) -> str:
        """Render the file, or read the user's custom file.

        Raises:
            InvalidInput: the custom file cannot be read.
        """
        if self.settings.custom_config_file:
            return _custom_text(self.settings.custom_config_file)
        return render_bootstrap(self.settings, self.flavour, self.override)


def _first_address(values: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    if values.get("ip") or environ.get("INSTANCE_IP"):
        return ""
    from istio_init.rules.kernel.surroundings import first_address

    return first_address()


def _load(path: str) -> dict[str, Any]:
    """Read an override file."""
    return _object(read_text(path, "--bootstrap-override"), path, "--bootstrap-override")


def _custom_text(path: str) -> str:
    """Read a custom bootstrap file, which must be an object; Envoy validates its contents."""
    text = read_text(path, "--customConfigFile")
    _object(text, path, "--customConfigFile")
    return text


def _object(text: str, path: str, where: str) -> dict[str, Any]:
    from istio_init.kubernetes.manifest import read_yaml

    try:
        documents = json.loads(json.dumps(read_yaml(text), allow_nan=False))
    except (TypeError, ValueError) as error:
        problem = f"{path!r} is not valid JSON or YAML: {error}"
        raise InvalidInput(where, problem, "a single object with JSON values") from None
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise InvalidInput(where, f"{path!r} is not a single object", "an object, such as {admin: …}")
    loaded: dict[str, Any] = documents[0]
    return loaded
