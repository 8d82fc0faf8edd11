"""A name server of the lab: the cluster's own, and in pods the proxy's resolver, to which captured requests go.

A program of its own: `python -m istio_init.lab.resolver --names FILE --port 15053 --forward-to ADDRESS 127.0.0.1`. It
answers over UDP and TCP, logs one line a question to standard output, and ends at SIGTERM.
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

TTL = 30  # seconds, as CoreDNS gives for services
PATIENCE = 3.0  # seconds for a server's answer
RECORDS = {Family.IPV4: (QTYPE.A, A), Family.IPV6: (QTYPE.AAAA, AAAA)}


class Names:
    """Answers what it knows, and hands the rest on; dnslib calls this a resolver.

    Args:
        addresses: those of each name, which is in lower case and without a dot at its end.
        server: the address of the one that knows the rest; without one, there is nothing else.
    """

    def __init__(self, addresses: Mapping[str, tuple[str, ...]], server: str = "") -> None:
        self._addresses = addresses
        self._server = server

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        """Answer a request."""
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
            answer = request.send(self._server, RESOLVER_PORT, tcp=protocol == "tcp", timeout=PATIENCE, ipv6=is_ipv6)
            return DNSRecord.parse(answer)
        except (OSError, DNSError) as error:
            log("dns problem", server=self._server, message=str(error))
            reply = request.reply()
            reply.header.rcode = RCODE.SERVFAIL
            return reply


def read_names(text: str) -> dict[str, tuple[str, ...]]:
    """Read lines of the form of hosts(5), without comments, as the addresses of each name."""
    found: dict[str, tuple[str, ...]] = {}
    for address, *names in filter(None, map(str.split, text.splitlines())):
        for name in names:
            found[name.lower()] = (*found.get(name.lower(), ()), address)
    return found


def main(words: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m istio_init.lab.resolver", description=__doc__)
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS", help="where to listen, and from where answers come")
    parser.add_argument("--port", type=int, default=RESOLVER_PORT)
    parser.add_argument("--names", required=True, type=Path, metavar="FILE", help="what is known; in the form of hosts(5)")
    parser.add_argument("--forward-to", default="", metavar="ADDRESS", help="the server that knows the rest")
    given = parser.parse_args(words)
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # threads inherit this, so that only the wait below takes them
    names = Names(read_names(given.names.read_text(encoding="ascii")), given.forward_to)
    logger = DNSLogger("error", prefix=False, logf=lambda text: log("dns problem", message=text))
    places = [(address, is_tcp) for address in given.addresses for is_tcp in (False, True)]
    servers = [DNSServer(names, address, given.port, tcp=is_tcp, logger=logger) for address, is_tcp in places]
    for server in servers:
        server.start_thread()
    log(LISTENING, addresses=",".join(given.addresses), port=given.port)
    signal.sigwait(ends)
    for server in servers:
        server.stop()


if __name__ == "__main__":
    main()
