"""Where values come from: default < environment file < environment variable < flag."""

from __future__ import annotations

import grp
import pwd
from typing import TYPE_CHECKING

import pytest

from istio_init.core.errors import InvalidInput
from istio_init.core.option import Option, Value
from istio_init.rules import environment
from istio_init.rules.environment import collect, read_settings
from istio_init.rules.layout import ISTIO_1_0, ISTIO_1_30, LAYOUTS
from istio_init.rules.options import ENABLE_INBOUND_IPV6, ENVOY_USER, OPTIONS
from istio_init.rules.settings import HostFacts, Settings
from tests.sweeps import sweep

if TYPE_CHECKING:
    from pathlib import Path


# Three values of each setting, none of them its default, and how they come out.
SAMPLES: dict[str, tuple[str, str, str]] = {
    "envoy_port": ("1001", "1002", "1003"),
    "inbound_capture_port": ("1001", "1002", "1003"),
    "proxy_uids": ("1001", "1002", "1003"),
    "proxy_gids": ("1001", "1002", "1003"),
    "mode": ("TPROXY", "REDIRECT", "TPROXY"),
    "tproxy_mark": ("1001", "1002", "1003"),
    "tproxy_route_table": ("1001", "1002", "1003"),
    "inbound_ports": ("1001", "1002", "1003"),
    "inbound_exclude_ports": ("1001", "1002", "1003"),
    "inbound_exclude_cidrs": ("10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"),
    "outbound_exclude_ports_for_uids": ("tcp:1:1001", "tcp:2:1002", "tcp:3:1003"),
    "dns_port": ("1001", "1002", "1003"),
    "jump": ("first", "last", "first"),
    "service_cidrs": ("10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"),
    "service_exclude_cidrs": ("10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"),
    "tunnel_port": ("1001", "1002", "1003"),
    "outbound_ports": ("1001", "1002", "1003"),
    "outbound_exclude_ports": ("1001", "1002", "1003"),
    "exclude_interfaces": ("eth1", "eth2", "eth3"),
    "virtual_interfaces": ("eth1", "eth2", "eth3"),
    "redirect_dns": ("True", "False", "True"),
    "capture_all_dns": ("True", "False", "True"),
    "forward_dns": ("True", "False", "True"),
    "drop_invalid": ("True", "False", "True"),
    "dual_stack": ("True", "False", "True"),
    "owner_groups": ("1001", "1002", "1003"),
    "owner_groups_exclude": ("1001", "1002", "1003"),
    "loopback_cidr": ("127.0.0.2/32", "127.0.0.3/32", "127.0.0.4/32"),
}


def variable_of(pair: tuple[Option, str]) -> str:
    return pair[1]


FIELDS = {"dual_stack": "ipv6"}  # the others have the option's name
OF_1_0 = [option for option in OPTIONS if LAYOUTS[ISTIO_1_0].has(option)]
each_variable = sweep(
    ("option", "variable"), [(option, name) for option in OF_1_0 for name in option.variables], variable_of
)
each_variable_of_current = sweep(
    ("option", "variable"),
    [(option, name) for option in OPTIONS for name in LAYOUTS[ISTIO_1_30].variables_of(option)],
    variable_of,
)
CLUSTER, SIDECAR = "ISTIO_CLUSTER_CONFIG", "ISTIO_SIDECAR_CONFIG"


@pytest.fixture(autouse=True)
def no_files_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tuple((name, str(tmp_path / "default" / name)) for name in (CLUSTER, SIDECAR))
    monkeypatch.setattr(environment, "ENVIRONMENT_FILES", files)


def written(path: Path, *lines: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def texts(flags: dict[str, str | None], environ: dict[str, str], layout: str = ISTIO_1_0) -> dict[str, str]:
    return {name: value.text for name, value in collect(flags, environ, layout).items()}


def as_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@each_variable
def test_a_flag_beats_a_variable_and_that_a_file_and_that_the_default(option: Option, variable: str, tmp_path: Path) -> None:
    in_file, in_environment, in_flag = SAMPLES[option.name]
    environ: dict[str, str] = {}
    flags: dict[str, str | None] = {option.name: None}

    def read() -> str:
        return as_text(getattr(read_settings(flags, environ), option.name))

    assert read() == as_text(getattr(read_settings({}, {}), option.name))
    environ[SIDECAR] = written(tmp_path / "sidecar.env", f"{variable}={in_file}")
    assert read() == in_file
    environ[variable] = in_environment
    assert read() == in_environment
    flags[option.name] = in_flag
    assert read() == in_flag


@each_variable_of_current
def test_a_flag_beats_a_variable_and_that_the_default_in_layout_current(
    option: Option, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "read_host_facts", lambda: HostFacts(nameservers=("10.0.0.1",)))
    _, in_environment, in_flag = SAMPLES[option.name]
    environ: dict[str, str] = {}
    field = FIELDS.get(option.name, option.name)

    def read(flag: str | None = None) -> str:
        return as_text(getattr(read_settings({option.name: flag}, environ, ISTIO_1_30), field))

    before = read()
    environ[variable] = SAMPLES[option.name][0]
    assert read() == SAMPLES[option.name][0] != before
    environ[variable] = in_environment
    assert read() == in_environment
    assert read(in_flag) == in_flag


@sweep("option", [option for option in OPTIONS if option not in OF_1_0], ids=lambda option: option.name)
def test_a_variable_of_a_setting_that_a_layout_does_not_have_is_ignored_and_a_flag_is_not(option: Option) -> None:
    environ = dict.fromkeys(option.variables, SAMPLES[option.name][0])
    assert texts({}, environ) == {}
    assert texts({option.name: "x"}, environ) == {option.name: "x"}


def test_layout_current_reads_no_environment_files(tmp_path: Path) -> None:
    environ = {CLUSTER: written(tmp_path / "cluster.env", "ENVOY_PORT=1001"), SIDECAR: str(tmp_path / "nowhere.env")}
    assert texts({}, environ, ISTIO_1_30) == {}


@each_variable
def test_where_a_value_came_from_is_told_in_the_users_words(option: Option, variable: str, tmp_path: Path) -> None:
    file = written(tmp_path / "sidecar.env", "", f"{variable}=in-file")
    assert collect({}, {SIDECAR: file})[option.name] == Value("in-file", f"${variable} ({file}:2)")
    assert collect({}, {SIDECAR: file, variable: "x"})[option.name] == Value("x", f"${variable}")
    assert collect({option.name: "y"}, {variable: "x"})[option.name] == Value("y", "/".join(option.flags))


@sweep("layout", LAYOUTS)
@sweep("option", OPTIONS, ids=lambda option: option.name)
def test_an_empty_flag_is_a_value(option: Option, layout: str) -> None:
    environ = dict.fromkeys(option.variables, SAMPLES[option.name][0])
    assert texts({option.name: ""}, environ, layout) == {option.name: ""}


@each_variable
def test_an_empty_variable_is_none_for_a_list_and_not_set_for_the_others(
    option: Option,
    variable: str,
    tmp_path: Path,
) -> None:
    file = written(tmp_path / "sidecar.env", f"{variable}=")
    expected = {option.name: ""} if option.is_list else {}
    assert texts({}, {variable: ""}) == expected
    assert texts({}, {variable: ""}, ISTIO_1_30) == ({} if variable in option.old_variables else expected)
    assert texts({}, {SIDECAR: file}) == expected


def test_an_empty_list_in_the_environment_beats_one_in_a_file(tmp_path: Path) -> None:
    file = written(tmp_path / "sidecar.env", "ISTIO_INBOUND_PORTS=80")
    assert texts({}, {SIDECAR: file, "ISTIO_INBOUND_PORTS": ""}) == {"inbound_ports": ""}


def test_the_scripts_name_of_excluded_ports_comes_before_the_documented_one() -> None:
    both = {"ISTIO_LOCAL_EXCLUDE_PORTS": "1", "ISTIO_INBOUND_EXCLUDE_PORTS": "2"}
    assert texts({}, both) == {"inbound_exclude_ports": "1"}
    del both["ISTIO_LOCAL_EXCLUDE_PORTS"]
    assert texts({}, both) == {"inbound_exclude_ports": "2"}


@sweep("option", [option for option in OPTIONS if len(option.variables) > 1], ids=lambda option: option.name)
def test_of_several_variables_of_a_setting_the_last_one_that_is_set_wins(option: Option) -> None:
    layout = ISTIO_1_0 if option.old_variables else ISTIO_1_30
    both = dict(zip(option.variables, SAMPLES[option.name], strict=False))
    assert texts({}, both, layout) == {option.name: both[option.variables[-1]]}
    assert texts({}, both | {option.variables[-1]: ""}, layout)[option.name] in ("", both[option.variables[0]])
    del both[option.variables[-1]]
    assert texts({}, both, layout) == {option.name: both[option.variables[0]]}


@sweep("option", [option for option in OPTIONS if option.old_variables], ids=lambda option: option.name)
def test_a_variable_that_only_istio_1_0_reads_is_ignored_by_layout_current(option: Option) -> None:
    environ = dict.fromkeys(option.old_variables, "tcp://10.96.0.20:80")
    assert texts({}, environ, ISTIO_1_30) == {}
    assert texts({}, environ) == {option.name: "tcp://10.96.0.20:80"}


@each_variable
def test_a_variable_that_a_flag_overrides_is_not_checked(option: Option, variable: str) -> None:
    flag = SAMPLES[option.name][0]
    assert as_text(getattr(read_settings({option.name: flag}, {variable: "tcp://10.96.0.20:80"}), option.name)) == flag
    with pytest.raises(InvalidInput) as caught:
        read_settings({}, {variable: "tcp://10.96.0.20:80"})
    assert (caught.value.where, caught.value.exit_code) == (f"${variable}", 2)


def test_variables_of_others_are_no_settings() -> None:
    assert collect({}, {"PATH": "/bin", "ISTIO_VERSION": "1.0.5", "HOME": ""}) == {}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("ISTIO_SERVICE_CIDR=10.0.0.0/8", "10.0.0.0/8"),
        ('ISTIO_SERVICE_CIDR="10.0.0.0/8"', "10.0.0.0/8"),
        ("ISTIO_SERVICE_CIDR='10.0.0.0/8'", "10.0.0.0/8"),
        ("export ISTIO_SERVICE_CIDR=10.0.0.0/8", "10.0.0.0/8"),
        ("  export ISTIO_SERVICE_CIDR='10.0.0.0/8'  ", "10.0.0.0/8"),
        ("ISTIO_SERVICE_CIDR=10.0.0.0/8 # the cluster", "10.0.0.0/8"),
        ("ISTIO_SERVICE_CIDR='10.0.0.0/8, 10.1.0.0/16'", "10.0.0.0/8, 10.1.0.0/16"),
        ("ISTIO_SERVICE_CIDR=10.0.0.0/8\\,1.2.3.4", "10.0.0.0/8,1.2.3.4"),
        ("ISTIO_SERVICE_CIDR='*'", "*"),
        ("ISTIO_SERVICE_CIDR=*", "*"),
        ("ISTIO_SERVICE_CIDR=", ""),
        ('ISTIO_SERVICE_CIDR=""', ""),
        ("ISTIO_SERVICE_CIDR=a=b", "a=b"),
        ("ENVOY_USER=me ISTIO_SERVICE_CIDR=1.2.3.4", "1.2.3.4"),
    ],
)
def test_lines_of_a_file_are_read_as_a_shell_reads_them(line: str, value: str, tmp_path: Path) -> None:
    file = written(tmp_path / "cluster.env", "# a comment", "", "   ", line, "#ISTIO_SERVICE_CIDR=commented.out")
    assert texts({}, {CLUSTER: file})["service_cidrs"] == value


def test_a_hash_within_a_word_begins_no_comment(tmp_path: Path) -> None:
    file = written(tmp_path / "cluster.env", "ENVOY_PORT=80#5")
    assert texts({}, {CLUSTER: file}) == {"envoy_port": "80#5"}


def test_line_ends_of_windows_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "cluster.env"
    path.write_bytes(b"ENVOY_PORT=1001\r\nPROXY_UID=5\r\n")
    assert texts({}, {CLUSTER: str(path)}) == {"envoy_port": "1001", "proxy_uids": "5"}


def test_the_last_line_of_a_variable_counts(tmp_path: Path) -> None:
    file = written(tmp_path / "cluster.env", "ENVOY_PORT=1", "ENVOY_PORT=2")
    assert collect({}, {CLUSTER: file})["envoy_port"] == Value("2", f"$ENVOY_PORT ({file}:2)")


def test_the_sidecars_file_beats_the_clusters(tmp_path: Path) -> None:
    cluster = written(tmp_path / "cluster.env", "ENVOY_PORT=1001", "PROXY_UID=5")
    sidecar = written(tmp_path / "sidecar.env", "ENVOY_PORT=1002")
    found = texts({}, {CLUSTER: cluster, SIDECAR: sidecar})
    assert found == {"envoy_port": "1002", "proxy_uids": "5"}


def test_the_clusters_file_may_name_the_sidecars(tmp_path: Path) -> None:
    sidecar = written(tmp_path / "sidecar.env", "ENVOY_PORT=1002")
    cluster = written(tmp_path / "cluster.env", f"export {SIDECAR}='{sidecar}'")
    assert texts({}, {CLUSTER: cluster}) == {"envoy_port": "1002"}


def test_the_environment_beats_the_clusters_file_in_naming_the_sidecars(tmp_path: Path) -> None:
    other = written(tmp_path / "other.env", "ENVOY_PORT=1003")
    cluster = written(tmp_path / "cluster.env", f"{SIDECAR}={tmp_path}/nowhere.env")
    assert texts({}, {CLUSTER: cluster, SIDECAR: other}) == {"envoy_port": "1003"}


@pytest.mark.parametrize("name", [CLUSTER, SIDECAR])
def test_a_file_at_its_default_place_is_read_and_may_be_missing(name: str, tmp_path: Path) -> None:
    assert collect({}, {}) == {}
    written(tmp_path / "default" / name, "ENVOY_PORT=1001")
    assert texts({}, {}) == {"envoy_port": "1001"}
    assert texts({}, {name: ""}) == {"envoy_port": "1001"}


@pytest.mark.parametrize("name", [CLUSTER, SIDECAR])
def test_a_file_that_was_named_must_be_there(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.env")
    with pytest.raises(InvalidInput, match="No such file") as caught:
        collect({}, {name: path})
    assert caught.value.where == f"${name}"
    assert repr(path) in caught.value.problem


@pytest.mark.parametrize("content", [b"ENVOY_PORT=\xff\n", b"\x80"])
def test_a_file_that_is_no_text_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cluster.env"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="cannot read"):
        collect({}, {CLUSTER: str(path)})


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot read"):
        collect({}, {CLUSTER: str(tmp_path)})


@pytest.mark.parametrize(
    "line",
    [
        "reboot",
        "export ENVOY_PORT",
        "ENVOY_PORT = 15001",
        "ENVOY_PORT: 15001",
        "=15001",
        "1PORT=15001",
        "ENVOY-PORT=15001",
        "ÉNVOY_PORT=15001",
        "ENVOY_PORT=15001; reboot",
        "ENVOY_PORT=15001 && reboot",
        "ENVOY_PORT='15001",
        'ENVOY_PORT="15001',
        "ENVOY_PORT=15001\\",
        "if true; then ENVOY_PORT=1; fi",
        "exec ENVOY_PORT=15001",
        ". /etc/other.env",
    ],
)
def test_a_line_that_is_not_key_and_value_is_refused_with_file_and_line(line: str, tmp_path: Path) -> None:
    file = written(tmp_path / "cluster.env", "# first", "PROXY_UID=5", line)
    with pytest.raises(InvalidInput) as caught:
        collect({}, {CLUSTER: file})
    assert caught.value.where == f"{file}:3"
    assert repr(line) in caught.value.problem
    assert "KEY=value" in caught.value.allowed


@pytest.mark.parametrize("word", ["$(touch {})", "`touch {}`", "80;touch {}", "80|touch {}", "80\ttouch {}"])
@pytest.mark.parametrize("quote", ["'", '"', ""])
def test_nothing_in_a_file_is_run(word: str, quote: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    file = written(tmp_path / "cluster.env", f"ISTIO_INBOUND_PORTS={quote}{word.format(trap)}{quote}")
    with pytest.raises(InvalidInput):
        read_settings({}, {CLUSTER: file})
    assert not trap.exists()


def test_variables_are_not_expanded(tmp_path: Path) -> None:
    file = written(tmp_path / "cluster.env", "A=1001", 'ENVOY_PORT="$A"', "PROXY_UID=$A")
    assert texts({}, {CLUSTER: file}) == {"envoy_port": "$A", "proxy_uids": "$A"}


@pytest.mark.parametrize("line", ["PROXY_UID=a\0b", "PROXY_GID=a\0b", "ENVOY_USER=a\0b", f"{SIDECAR}=/a\0b"])
def test_a_byte_of_zero_in_a_file_is_bad_input(line: str, tmp_path: Path) -> None:
    file = written(tmp_path / "cluster.env", line)
    with pytest.raises(InvalidInput):
        read_settings({}, {CLUSTER: file})


def test_a_value_of_a_file_that_is_not_allowed_is_refused_with_variable_file_and_line(tmp_path: Path) -> None:
    file = written(tmp_path / "sidecar.env", "", "ENVOY_PORT=0")
    with pytest.raises(InvalidInput) as caught:
        read_settings({}, {SIDECAR: file})
    assert str(caught.value) == f"$ENVOY_PORT ({file}:2): '0' is not a port (allowed: 1..65535)"


def test_users_and_groups_of_this_machine_are_found_by_name() -> None:
    user, group = pwd.getpwuid(0), grp.getgrgid(0)
    settings = read_settings({"proxy_uids": f"{user.pw_name},5", "proxy_gids": group.gr_name}, {})
    assert (settings.proxy_uids, settings.proxy_gids) == ((0, 5), (0,))


@pytest.mark.parametrize("name", ["proxy_uids", "proxy_gids"])
@pytest.mark.parametrize("text", ["nobody-of-this-name", "\udcff", "名前"])
def test_a_name_that_this_machine_does_not_know_is_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidInput, match=r"there is no (user|group)"):
        read_settings({name: text}, {})


def test_envoy_user_names_the_default_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "_uid_of", {"envoy": 101, "other": 102}.get)
    assert read_settings({}, {ENVOY_USER: "envoy"}).proxy_uids == (101, 0)
    assert read_settings({}, {ENVOY_USER: ""}).proxy_uids == (1337, 0)
    assert read_settings({}, {ENVOY_USER: "envoy", "PROXY_UID": "7"}).proxy_uids == (7,)
    file = written(tmp_path / "sidecar.env", f"{ENVOY_USER}=other")
    assert read_settings({}, {SIDECAR: file}).proxy_uids == (102, 0)
    assert read_settings({}, {SIDECAR: file, ENVOY_USER: "envoy"}).proxy_uids == (101, 0)
    with pytest.raises(InvalidInput, match=r"^\$ENVOY_USER: there is no user 'nobody-here'"):
        read_settings({}, {ENVOY_USER: "nobody-here"})


@pytest.mark.parametrize(
    ("environ", "closed"), [({}, True), ({ENABLE_INBOUND_IPV6: ""}, True), ({ENABLE_INBOUND_IPV6: "1"}, False)]
)
def test_inbound_ipv6_is_opened_by_a_variable_that_is_not_empty(environ: dict[str, str], *, closed: bool) -> None:
    assert read_settings({}, environ).close_inbound_ipv6 is closed


def test_inbound_ipv6_can_be_opened_by_a_file_and_an_empty_variable_closes_it(tmp_path: Path) -> None:
    file = written(tmp_path / "cluster.env", f"{ENABLE_INBOUND_IPV6}=true")
    assert not read_settings({}, {CLUSTER: file}).close_inbound_ipv6
    assert read_settings({}, {CLUSTER: file, ENABLE_INBOUND_IPV6: ""}).close_inbound_ipv6


def test_ten_thousand_cidrs_in_one_variable_are_taken() -> None:
    cidrs = ",".join(f"10.{number // 250}.{number % 250}.0/24" for number in range(10000))
    settings: Settings = read_settings({}, {"ISTIO_SERVICE_EXCLUDE_CIDR": cidrs})
    assert len(settings.service_exclude_cidrs) == 10000
