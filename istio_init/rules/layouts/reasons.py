"""Why rules exist: the reasons of all layouts, in one table. Wording may change at any time; ids may not."""

from istio_init.rules.model import Reason

# Both layouts.
TO_OUTBOUND_PORT = Reason("outbound-redirected", "outbound connections go to Envoy's outbound port")
TO_INBOUND_PORT = Reason("inbound-redirected", "inbound connections go to Envoy's inbound port")
INBOUND = Reason("inbound", "connections from outside the pod go through the inbound rules")
INBOUND_PORT_CAPTURED = Reason("inbound-port-captured", "port {value} is captured (-b)", plural="{ports} are captured (-b)")
INBOUND_PORT_EXCLUDED = Reason("inbound-port-excluded", "port {value} is excluded (-d)", plural="{ports} are excluded (-d)")
INBOUND_CIDR_EXCLUDED = Reason(
    "inbound-cidr-excluded",
    "sender {value} is excluded (--exclude-inbound-cidrs)",
    plural="{senders} are excluded (--exclude-inbound-cidrs)",
)
INBOUND_ALL_CAPTURED = Reason("inbound-all-captured", "every other port is captured (-b '*')")
OUTBOUND = Reason("outbound", "connections that this pod opens go through the outbound rules")
PROXY_UID = Reason(
    "proxy-uid",
    "the proxy's own traffic (uid {value}) must not loop",
    plural="the proxy's own traffic ({uids}) must not loop",
)
PROXY_GID = Reason(
    "proxy-gid",
    "the proxy's own traffic (gid {value}) must not loop",
    plural="the proxy's own traffic ({gids}) must not loop",
)
LOCALHOST = Reason("localhost", "containers of a pod talk to each other directly over localhost")
OUTBOUND_PORT_OF_UID_EXCLUDED = Reason(
    "outbound-port-of-uid-excluded",
    "this destination port is excluded for uid {value} (--exclude-outbound-ports-for-uids)",
    plural="this destination port is excluded for {uids} (--exclude-outbound-ports-for-uids)",
)
OUTBOUND_CIDR_EXCLUDED = Reason(
    "outbound-cidr-excluded", "destination {value} is excluded (-x)", plural="{destinations} are excluded (-x)"
)
OUTBOUND_CIDR_CAPTURED = Reason(
    "outbound-cidr-captured", "destination {value} is captured (-i)", plural="{destinations} are captured (-i)"
)
OUTBOUND_ALL_CAPTURED = Reason("outbound-all-captured", "every other destination is captured (-i '*')")
# Both layouts, TPROXY.
TPROXY_MARKED = Reason("tproxy-marked", "marked packets are routed to this host, where Envoy listens")
TPROXY_ACCEPTED = Reason("tproxy-accepted", "no further rule in this table applies to them")
TPROXY_NEW = Reason("tproxy-new", "a new connection is handed to Envoy's inbound port with its addresses unchanged")

# Layout istio-1.0.
SSH = Reason("ssh", "SSH is never captured, so that operators can log in")
TPROXY_SOCKET = Reason("tproxy-socket", "packets of an established connection go straight to its socket")
HAIRPIN = Reason("hairpin", "hairpin traffic (a pod calling its own or its service's address) goes through Envoy")
OUTBOUND_OTHERS = Reason("outbound-others", "no other destination is captured")
IPV6_INBOUND = Reason("ipv6-inbound", "inbound IPv6 is filtered, because no rule here captures it")
IPV6_REPLIES = Reason("ipv6-replies", "replies to connections that this pod opened are accepted")
IPV6_REJECTED = Reason("ipv6-rejected", "other IPv6 would bypass Envoy (ENABLE_INBOUND_IPV6=1 allows it)")

# Layout current.
TUNNEL = Reason("tunnel", "HBONE tunnels terminate at the proxy itself")
INTERFACE_EXCLUDED = Reason("interface-excluded", "interface {value} is excluded (-c)")
VIRTUAL_NOT_INBOUND = Reason("virtual-not-inbound", "traffic of a virtual machine on {value} (-k) is not inbound")
VIRTUAL_CAPTURED = Reason("virtual-captured", "traffic of a virtual machine on {value} (-k) is captured as outbound (-i)")
INVALID_DROPPED = Reason("invalid-dropped", "packets that belong to no connection would be answered with a reset")
OUTBOUND_PORT_CAPTURED = Reason(
    "outbound-port-captured",
    "destination port {value} is captured (-q)",
    plural="{destination ports} are captured (-q)",
)
OUTBOUND_PORT_EXCLUDED = Reason(
    "outbound-port-excluded",
    "destination port {value} is excluded (-o)",
    plural="{destination ports} are excluded (-o)",
)
PROXY_SOURCE = Reason("proxy-source", "the proxy connects to its app from this address")
PROXY_HAIRPIN_UID = Reason(
    "proxy-hairpin-uid",
    "hairpin: the proxy (uid {value}) calls a service of its own pod, which is inbound traffic",
    plural="hairpin: the proxy ({uids}) calls a service of its own pod, which is inbound traffic",
)
PROXY_HAIRPIN_GID = Reason(
    "proxy-hairpin-gid",
    "hairpin: the proxy (gid {value}) calls a service of its own pod, which is inbound traffic",
    plural="hairpin: the proxy ({gids}) calls a service of its own pod, which is inbound traffic",
)
APP_HAIRPIN = Reason("app-hairpin", "hairpin: an app's calls to its own pod's address are not captured")
GROUPS_ONLY = Reason("groups-only", "only groups {value} are captured (ISTIO_OUTBOUND_OWNER_GROUPS)")
NO_GROUP = Reason("no-group", "no group is captured (ISTIO_OUTBOUND_OWNER_GROUPS is empty)")
GROUP_EXCLUDED = Reason(
    "group-excluded",
    "group {value} is excluded (ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE)",
    plural="{groups} are excluded (ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE)",
)
# Layout current, TPROXY.
TPROXY_KNOWN = Reason("tproxy-known", "packets of a tracked connection go to its socket")
TPROXY_REPLY = Reason("tproxy-reply", "replies go back to the peer that opened the connection, also through -c and -k")
TPROXY_OWN_MARK = Reason("tproxy-own-mark", "the proxy's traffic to its app carries this mark")
TPROXY_OWN_SOURCE = Reason("tproxy-own-source", "the proxy's traffic to its app comes from {value}")
TPROXY_LOOPBACK = Reason("tproxy-loopback", "the app's traffic to itself is not captured")
TPROXY_TO_APP = Reason("tproxy-to-app", "the proxy connects to its app from the client's address, with this mark")
MARK_SAVED = Reason("mark-saved", "the mark of the proxy's packets to its app is saved in the connection")
MARK_PRESENT = Reason("mark-present", "the proxy's packets to its app already carry their mark")
MARK_HAIRPIN = Reason("mark-hairpin", "hairpin: the proxy's packets to a service of its own pod are captured inbound")
MARK_RESTORED = Reason("mark-restored", "the app's replies get the connection's mark, which routes them to the proxy")
# Layout current, DNS.
DNS = Reason("dns", "DNS requests go through the DNS rules")
DNS_RAW = Reason("dns-raw", "DNS packets are assigned to zones before conntrack sees them")
DNS_ANY_SERVER = Reason("dns-any-server", "DNS requests to any server go to the proxy's resolver")
DNS_SERVER = Reason(
    "dns-server",
    "DNS requests to server {value} go to the proxy's resolver",
    plural="DNS requests to {servers} go to the proxy's resolver",
)
DNS_ZONE_PROXY = Reason("dns-zone-proxy", "the proxy's requests to a server are in the proxy's conntrack zone")
DNS_ZONE_REPLY = Reason("dns-zone-reply", "the proxy's replies to the app are in the app's conntrack zone")
DNS_ZONE_APP = Reason("dns-zone-app", "the app's requests are in the app's conntrack zone")
DNS_RAW_INBOUND = Reason("dns-raw-inbound", "replies from servers are assigned to zones before conntrack sees them")
DNS_ZONE_FORWARDED = Reason(
    "dns-zone-forwarded", "requests that the pod forwards are in the proxy's conntrack zone, as their answers are"
)
DNS_ZONE_SERVER = Reason("dns-zone-server", "a server's replies are in the proxy's conntrack zone, as its requests are")
