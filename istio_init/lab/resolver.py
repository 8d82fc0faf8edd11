"""The lab's DNS server: the cluster's name server, and in pods the proxy's resolver for captured queries.

A separate program: `python -m istio_init.lab.resolver --names FILE --port 15053 --forward-to ADDRESS 127.0.0.1`. It
serves UDP and TCP, logs one line per query to standard output, and stops on SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from dnslib import AAAA, QTYPE, RCODE, RR, A, DNSError, DNSRecord
from dnslib.server import DNSLogger, DNSServer

from istio_init.lab.events import log
from istio_init.lab.names import LISTENING
from istio_init.lab.world import family_of
from istio_init.rules.model import RESOLVER_PORT, Family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dnslib.server import DNSHandler

TTL = 30  # seconds, as with CoreDNS for services
FORWARD_TIMEOUT = 3.0  # seconds
RECORDS = {Family.IPV4: (QTYPE.A, A), Family.IPV6: (QTYPE.AAAA, AAAA)}


class Names:
    """Answers queries for known names, and forwards all others; implements dnslib's resolver interface.

    Args:
        addresses: name, in lower case and without a trailing dot → addresses.
        server: the address of the server to forward to; empty to answer NXDOMAIN instead.
    """

    def __init__(self, addresses: Mapping[str, tuple[str, ...]], server: str = "") -> None:
        self._addresses = addresses
        self._server = server

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        """Answer a query."""
        name = str(request.q.qname).removesuffix(".").lower()
        known = self._addresses.get(name)
        outcome = "dns answered" if known else "dns forwarded" if self._server else "dns unknown"
        log(outcome, name=name, type=QTYPE.get(request.q.qtype), protocol=handler.protocol, client=handler.client_address[0])
        if known is None and self._server:
            return self._forward(request, handler.protocol)
        reply = request.reply()
        if known is None:
            reply.header.rcode = RCODE.NXDOMAIN
        for address in known or ():
            kind, record = RECORDS[family_of(address)]
            if request.q.qtype in (kind, QTYPE.ANY):
                reply.add_answer(RR(request.q.qname, kind, ttl=TTL, rdata=record(address)))
        return reply

    def _forward(self, request: DNSRecord, protocol: str) -> DNSRecord:
        is_ipv6 = family_of(self._server) is Family.IPV6
        try:
            answer = request.send(self._server, RESOLVER_PORT, tcp=protocol == "tcp", timeout=FORWARD_TIMEOUT, ipv6=is_ipv6)
            return DNSRecord.parse(answer)
        except (OSError, DNSError) as error:
            log("dns error", server=self._server, message=str(error))
            reply = request.reply()
            reply.header.rcode = RCODE.SERVFAIL
            return reply


def read_names(text: str) -> dict[str, tuple[str, ...]]:
    """Parse hosts(5) lines, without comments, into the addresses of each name."""
    found: dict[str, tuple[str, ...]] = {}
    for address, *names in filter(None, map(str.split, text.splitlines())):
        for name in names:
            found[name.lower()] = (*found.get(name.lower(), ()), address)
    return found


def main(words: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m istio_init.lab.resolver", description=__doc__)
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS", help="addresses to listen on")
    parser.add_argument("--port", type=int, default=RESOLVER_PORT)
    parser.add_argument("--names", required=True, type=Path, metavar="FILE", help="known names, in hosts(5) format")
    parser.add_argument("--forward-to", default="", metavar="ADDRESS", help="server for all other names")
    arguments = parser.parse_args(words)
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)  # threads inherit the mask, so only sigwait() below receives them
    names = Names(read_names(arguments.names.read_text(encoding="ascii")), arguments.forward_to)
    logger = DNSLogger("error", prefix=False, logf=lambda text: log("dns error", message=text))
    endpoints = [(address, is_tcp) for address in arguments.addresses for is_tcp in (False, True)]
    servers = [DNSServer(names, address, arguments.port, tcp=is_tcp, logger=logger) for address, is_tcp in endpoints]
    for server in servers:
        server.start_thread()
    log(LISTENING, addresses=",".join(arguments.addresses), port=arguments.port)
    signal.sigwait(stop_signals)
    for server in servers:
        server.stop()


if __name__ == "__main__":
    main()
