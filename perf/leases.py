#!/usr/bin/env python3
"""Other nodes' leases, many at once, over etcd's JSON gateway (standard library only).

  perf/leases.py URL PREFIX set COUNT PUBLIC_IP        have exactly COUNT filler leases
  perf/leases.py URL PREFIX churn RATE SECONDS PUBLIC_IP   add and remove others, RATE changes a second
  perf/leases.py URL PREFIX nodes FIRST COUNT [PAUSE [TTL]]  leases of vxlan nodes, each at an address and a MAC of its own,
                                                           all at once or one every PAUSE seconds, without an end or
                                                           each with an etcd lease of TTL seconds
  perf/leases.py URL PREFIX leave FIRST COUNT              and their end

Filler i is the subnet 10.129.0.0/24 + i, node i the same subnet at 10.64.1.0 + i. Changes travel in transactions, so that the writer costs little; etcd's watch
delivers each key's change by itself.
"""
import base64
import http.client
import ipaddress
import json
import sys
import time
import urllib.parse

BASE = int(ipaddress.IPv4Address("10.129.0.0"))
A_BATCH = 500  # of etcd's --max-txn-ops 1024
CHURNED = range(12_000, 13_000)  # fillers that `churn` plays with


def coded(text):
    return base64.b64encode(text.encode()).decode()


class Etcd:
    """One kept-alive connection."""

    def __init__(self, url, prefix):
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=10)
        self.prefix = prefix.rstrip("/") + "/subnets/"

    def grant(self, ttl):
        return self.call("grant", {"TTL": ttl}, "lease")["ID"]

    def call(self, what, body, service="kv"):
        self.connection.request("POST", f"/v3/{service}/{what}", json.dumps(body), {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"etcd says {answer.status}: {text.decode()}")
        return json.loads(text)

    def key(self, filler):
        return coded(f"{self.prefix}{ipaddress.IPv4Address(BASE + 256 * filler)}-24")

    def put(self, filler, public_ip):
        return {"requestPut": {"key": self.key(filler), "value": coded(json.dumps({"PublicIP": public_ip}))}}

    def delete(self, filler):
        return {"requestDeleteRange": {"key": self.key(filler)}}

    def change(self, operations):
        self.call("txn", {"success": operations})

    def fillers(self):
        """Those that are there."""
        end = self.prefix[:-1] + chr(ord(self.prefix[-1]) + 1)
        answer = self.call("range", {"key": coded(self.prefix), "range_end": coded(end), "keys_only": True})
        for pair in answer.get("kvs", []):
            name = base64.b64decode(pair["key"]).decode().rsplit("/", 1)[1]
            address = int(ipaddress.IPv4Address(name.split("-")[0]))
            if address >= BASE:
                yield (address - BASE) // 256


def have(etcd, count, public_ip):
    there = set(etcd.fillers())
    operations = [etcd.delete(i) for i in sorted(there) if i >= count]
    operations += [etcd.put(i, public_ip) for i in range(count) if i not in there]
    for start in range(0, len(operations), A_BATCH):
        etcd.change(operations[start:start + A_BATCH])
    print(f"{count} filler leases, {len(operations)} changes")


def churn(etcd, rate, seconds, public_ip):
    """Adds all of CHURNED, then removes them, and so on, 20 changes a transaction."""
    a_step, done, late, start = 20, 0, 0.0, time.monotonic()
    present = set()
    while time.monotonic() - start < seconds:
        due = start + done / rate
        now = time.monotonic()
        late = max(late, now - due)
        if now < due:
            time.sleep(due - now)
        operations = []
        for _ in range(a_step):
            filler = CHURNED[done % len(CHURNED)]
            operations.append(etcd.delete(filler) if filler in present else etcd.put(filler, public_ip))
            present ^= {filler}
            done += 1
        etcd.change(operations)
    print(f"changes_per_s {done / (time.monotonic() - start):.0f}\nlate_ms {late * 1000:.0f}")
    for filler in present:
        etcd.change([etcd.delete(filler)])


def node(etcd, i, ttl):
    """A vxlan node's lease, as flannel writes it."""
    address = ipaddress.IPv4Address(int(ipaddress.IPv4Address("10.64.1.0")) + i)
    mac = "0a:00:" + ":".join(f"{byte:02x}" for byte in i.to_bytes(4, "big"))
    value = {"PublicIP": str(address), "PublicIPv6": None, "BackendType": "vxlan",
             "BackendData": {"VNI": 1, "VtepMAC": mac}}
    text = json.dumps(value, separators=(",", ":"))
    put = {"key": etcd.key(i), "value": coded(text)}
    if ttl:
        put["lease"] = etcd.grant(ttl)
    return {"requestPut": put}


def nodes(etcd, first, count, pause, ttl):
    a_batch = 1 if pause else A_BATCH
    for start in range(first, first + count, a_batch):
        etcd.change([node(etcd, i, ttl) for i in range(start, min(start + a_batch, first + count))])
        time.sleep(pause)


def main():
    url, prefix, command, *rest = sys.argv[1:]
    etcd = Etcd(url, prefix)
    if command == "set":
        have(etcd, int(rest[0]), rest[1])
    elif command == "churn":
        churn(etcd, float(rest[0]), float(rest[1]), rest[2])
    elif command == "nodes":
        nodes(etcd, int(rest[0]), int(rest[1]), float((rest[2:] or [0])[0]), int((rest[3:] or [0])[0]))
    elif command == "leave":
        etcd.change([etcd.delete(i) for i in range(int(rest[0]), int(rest[0]) + int(rest[1]))])
    else:
        raise SystemExit(__doc__)


main()
