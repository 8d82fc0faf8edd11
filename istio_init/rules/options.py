"""The table of settings, as users see them.

Each row of `OPTIONS` is one setting: the command line, the lookup of environment variables, the help text and the README's
table are all derived from it. Names, variables and defaults are those of Istio 1.0.5's `istio-iptables.sh` (short flags) and
of today's `pilot-agent istio-iptables` (long flags).
"""

from istio_init.core.option import Kind, Option
from istio_init.rules import values as parse
from istio_init.rules.model import (
    DNS_PORT,
    ENVOY_PORT,
    INBOUND_PORT,
    LOOPBACK_CIDR,
    PROXY_UID,
    TPROXY_MARK,
    TPROXY_ROUTE_TABLE,
    TUNNEL_PORT,
    Jump,
    Mode,
)

V1_30 = (1, 30)
MAX_GROUPS = 64  # Istio's own limit of those to capture, whose rule names them all


OPTIONS = (
    Option("envoy_port", ("-p", "--envoy-port"), ("ENVOY_PORT",), "PORT",
           f"Port that Envoy accepts outbound connections on. Default: {ENVOY_PORT}. The variable: istio-1.0 only.",
           parse=parse.port, default=str(ENVOY_PORT), old_variables=("ENVOY_PORT",)),
    Option("inbound_capture_port", ("-z", "--inbound-capture-port"), ("INBOUND_CAPTURE_PORT",), "PORT",
           f"Port that Envoy accepts inbound connections on. Default: the value of -p; current: {INBOUND_PORT}.",
           parse=parse.port),
    Option("tunnel_port", ("-e", "--inbound-tunnel-port"), ("INBOUND_TUNNEL_PORT",), "PORT",
           f"Port of HBONE tunnels, which bypass capture. Default: {TUNNEL_PORT}.", since=V1_30,
           parse=parse.port, default=str(TUNNEL_PORT)),
    Option("proxy_uids", ("-u", "--proxy-uid"), ("PROXY_UID",), "UIDS",
           "Users (ids or names) whose traffic is not redirected: the proxy's own. Default: the user named by "
           f"ENVOY_USER, else istio-proxy, else {PROXY_UID}; and 0 (current: without 0).",
           parse=parse.listed(parse.owner)),
    Option("proxy_gids", ("-g", "--proxy-gid"), ("PROXY_GID",), "GIDS",
           "Groups (ids or names) whose traffic is not redirected. Default: the value of -u.",
           parse=parse.listed(parse.owner)),
    Option("mode", ("-m", "--istio-inbound-interception-mode"), ("ISTIO_INBOUND_INTERCEPTION_MODE",), "MODE",
           "How inbound connections reach Envoy: REDIRECT, or TPROXY, which keeps the client's address. "
           "Default: REDIRECT.",
           parse=parse.mode, default=Mode.REDIRECT, offered=tuple(Mode)),
    Option("tproxy_mark", ("-t", "--istio-inbound-tproxy-mark"), ("ISTIO_INBOUND_TPROXY_MARK",), "MARK",
           f"Mark for packets that TPROXY diverts. Default: {TPROXY_MARK}.",
           parse=parse.mark, default=str(TPROXY_MARK)),
    Option("tproxy_route_table", ("-r", "--istio-inbound-tproxy-route-table"), ("ISTIO_INBOUND_TPROXY_ROUTE_TABLE",),
           "TABLE", f"Routing table that delivers marked packets to this host. Default: {TPROXY_ROUTE_TABLE}.",
           parse=parse.route_table, default=str(TPROXY_ROUTE_TABLE)),
    Option("inbound_ports", ("-b", "--istio-inbound-ports"), ("ISTIO_INBOUND_PORTS",), "PORTS",
           "Inbound ports to capture: a list of ports and ranges, '*' for all, empty for none. Default: none.",
           is_list=True,
           parse=parse.listed(parse.port_range, all_allowed=True), default=""),
    Option("inbound_exclude_ports", ("-d", "--istio-local-exclude-ports"),
           ("ISTIO_INBOUND_EXCLUDE_PORTS", "ISTIO_LOCAL_EXCLUDE_PORTS"), "PORTS",
           "Inbound ports to exclude; applies only with -b '*'. Default: none. The first variable: istio-1.0 only.",
           is_list=True,
           parse=parse.listed(parse.port_range), default="", old_variables=("ISTIO_INBOUND_EXCLUDE_PORTS",)),
    Option("inbound_exclude_cidrs", ("--exclude-inbound-cidrs",), (), "CIDRS",
           "Sources whose inbound connections to exclude. Default: none.", is_list=True,
           parse=parse.listed(parse.cidr), default=""),
    Option("service_cidrs", ("-i", "--istio-service-cidr"), ("ISTIO_SERVICE_CIDR",), "CIDRS",
           "Destinations whose outbound connections to capture: a list of CIDRs, '*' for all, empty for none. "
           "Default: none.", is_list=True,
           parse=parse.listed(parse.cidr, all_allowed=True), default=""),
    Option("service_exclude_cidrs", ("-x", "--istio-service-exclude-cidr"), ("ISTIO_SERVICE_EXCLUDE_CIDR",), "CIDRS",
           "Destinations to exclude; takes precedence over -i. Default: none.", is_list=True,
           parse=parse.listed(parse.cidr), default=""),
    Option("outbound_ports", ("-q", "--istio-outbound-ports"), ("ISTIO_OUTBOUND_PORTS",), "PORTS",
           "Destination ports to capture, regardless of the address. Default: none.", is_list=True, since=V1_30,
           parse=parse.listed(parse.port_range), default=""),
    Option("outbound_exclude_ports", ("-o", "--istio-local-outbound-ports-exclude"),
           ("ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE",), "PORTS",
           "Destination ports to exclude. Default: none.", is_list=True, since=V1_30,
           parse=parse.listed(parse.port_range), default=""),
    Option("outbound_exclude_ports_for_uids", ("--exclude-outbound-ports-for-uids",), (), "tcp|udp:PORT:UID",
           "Destination ports to exclude for single users: a list of tcp|udp:PORT:UID; PORT may be a range, and UID a "
           "name. Default: none.", is_list=True,
           parse=parse.listed(parse.ports_of_user), default=""),
    Option("exclude_interfaces", ("-c", "--istio-exclude-interfaces"), ("ISTIO_EXCLUDE_INTERFACES",), "INTERFACES",
           "Interfaces whose traffic is not captured. Default: none.", is_list=True, since=V1_30,
           parse=parse.listed(parse.interface), default=""),
    Option("virtual_interfaces", ("-k", "--kube-virt-interfaces"), ("KUBE_VIRT_INTERFACES",), "INTERFACES",
           "Interfaces of virtual machines, whose traffic counts as outbound. Default: none.",
           is_list=True, since=V1_30,
           parse=parse.listed(parse.interface), default=""),
    Option("redirect_dns", ("--redirect-dns",), ("REDIRECT_DNS", "ISTIO_META_DNS_CAPTURE"), "BOOL",
           "Capture DNS requests to the servers of resolv.conf, for the proxy's resolver (--dns-port). Default: false.",
           kind=Kind.SWITCH, since=V1_30,
           parse=parse.boolean, default="false"),
    # No variable: a Service named `dns` sets DNS_PORT=tcp://...
    Option("dns_port", ("--dns-port",), (), "PORT",
           f"Port of the proxy's resolver; applies only with --redirect-dns. Default: {DNS_PORT}.", since=V1_30,
           parse=parse.port, default=str(DNS_PORT)),
    Option("capture_all_dns", ("--capture-all-dns",), ("CAPTURE_ALL_DNS",), "BOOL",
           "With --redirect-dns: capture requests to any server. Default: false.", kind=Kind.SWITCH, since=V1_30,
           parse=parse.boolean, default="false"),
    Option("forward_dns", ("--forward-dns",), (), "BOOL",
           "With --redirect-dns: let containers and virtual machines in the pod, whose requests it forwards, get their "
           "answers. Default: false.", kind=Kind.SWITCH, since=V1_30,
           parse=parse.boolean, default="false"),
    Option("drop_invalid", ("--drop-invalid",), ("DROP_INVALID", "INVALID_DROP"), "BOOL",
           "Drop packets in conntrack state INVALID. Default: false.", kind=Kind.SWITCH, since=V1_30,
           parse=parse.boolean, default="false"),
    Option("dual_stack", ("--dual-stack",), ("DUAL_STACK", "ISTIO_DUAL_STACK"), "BOOL",
           "Capture IPv6 as well, where the pod has an address of it. Default: false.", kind=Kind.SWITCH, since=V1_30,
           parse=parse.boolean, default="false"),
    Option("owner_groups", (), ("ISTIO_OUTBOUND_OWNER_GROUPS",), "GIDS",
           f"Groups whose outbound traffic is captured, at most {MAX_GROUPS}, '*' for all, empty for none. Default: '*'.",
           is_list=True, since=V1_30,
           parse=parse.listed(parse.owner, all_allowed=True), default=parse.ALL),
    Option("owner_groups_exclude", (), ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",), "GIDS",
           "Groups whose outbound traffic is excluded; applies only where all groups are captured. Default: none.",
           is_list=True, since=V1_30,
           parse=parse.listed(parse.owner), default=""),
    Option("jump", ("--jump",), (), "[first|last]",
           "Where our rules stand in built-in chains: first, before third-party rules, or last, behind those that are "
           "there. Default: last.",
           choices=tuple(Jump), default=Jump.LAST),
    Option("loopback_cidr", (), ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",), "CIDR",
           f"The IPv4 loopback CIDR, within 127.0.0.0/8. Default: {LOOPBACK_CIDR}.", since=V1_30,
           parse=parse.loopback, default=LOOPBACK_CIDR),
)  # fmt: skip

# Variables without a flag, both from Istio 1.0.5's script.
ENVOY_USER = "ENVOY_USER"
ENABLE_INBOUND_IPV6 = "ENABLE_INBOUND_IPV6"
