# shellcheck shell=bash
# Counting around a run in the lab of pair.sh: snapshots before and after, and the figures between them.
set -euo pipefail

# report_of NAME I: the counters of a daemon, asked for by SIGUSR1; they go to its log.
report_of() {
    local log="$LAB_DIR/$1.$2.log" from tries
    from=$(($(stat -c %s "$log") + 1))
    kill -USR1 "${PAIR_PID[$1,$2]}"
    for tries in $(seq 400); do
        # This is the engine's last line of a report.
        if tail -c "+$from" "$log" | grep -q '^drop tun_write '; then
            tail -c "+$from" "$log"
            return
        fi
        sleep 0.005
    done
    die "$1 on host $2 does not report ($tries tries)"
}

# cpu_of PID: CPU ticks that a process has used.
cpu_of() { sed 's/.*) //' "/proc/$1/stat" | awk '{print $12 + $13}'; }

# drops_in NS: what the kernel dropped in a namespace so far, as `kernel_WHERE N`.
drops_in() {
    in_ns "$1" sh -c 'cat /proc/net/snmp; ip -s -j link show; echo; tc -s qdisc show' | awk -v ns="$1" '
        $1 == "Udp:" && !seen++ { split($0, name); next }
        $1 == "Udp:" { for (i = 2; i <= NF; i++) if (name[i] ~ /(Rcvbuf|Sndbuf|Mem)Errors/) socket += $i }
        /"ifindex"/ { n = split($0, part, "\"dropped\":"); for (i = 2; i <= n; i++) link += part[i] + 0 }
        /dropped [0-9]+,/ { match($0, /dropped [0-9]+/); qdisc += substr($0, RSTART + 8, RLENGTH - 8) }
        END { printf "kernel_socket_%s %d\nkernel_link_%s %d\nkernel_qdisc_%s %d\n", ns, socket, ns, link, ns, qdisc }'
}

# softnet_drops: packets that found a processor's backlog full, on the whole machine.
softnet_drops() {
    local dropped sum=0
    while read -r _ dropped _; do sum=$((sum + 16#$dropped)); done </proc/net/softnet_stat
    echo "$sum"
}

# snapshot NAME: everything that is counted, a `key value` a line; keys of daemons end in the host's number.
snapshot() {
    local i
    awk '/^cpu / { for (i = 2; i <= 9; i++) all += $i
        print "cpu_all", all; print "cpu_idle", $5 + $6; print "cpu_softirq", $7 + $8; print "cpu_steal", $9 }' /proc/stat
    echo "kernel_softnet $(softnet_drops)"
    for i in h1 h2 c1 c2; do drops_in "$i"; done
    [ -n "${PAIR_PID[$1,1]:-}" ] || return 0
    for i in 1 2; do
        echo "cpu_daemon$i $(cpu_of "${PAIR_PID[$1,$i]}")"
        report_of "$1" "$i" | awk -v i="$i" '$1 == "count" || $1 == "drop" { print $1 "_" $2 "_" i, $3 }'
    done
}

# rss_of NAME: the larger of both daemons' resident sets now, KiB.
rss_of() {
    awk '/^VmRSS/ { if ($2 > most) most = $2 } END { print most }' \
        "/proc/${PAIR_PID[$1,1]}/status" "/proc/${PAIR_PID[$1,2]}/status"
}

# figures BEFORE AFTER FROM BYTES: figures of a run that carried BYTES of payload from host FROM, `metric value` a line.
figures() {
    awk -v from="$3" -v bytes="$4" -v hz="$(getconf CLK_TCK)" '
        function per(metric, a, b) { if (b > 0) printf "%s %.4f\n", metric, a / b }
        NR == FNR { before[$1] = $2; next }
        { d[$1] = $2 - before[$1] }
        END {
            to = 3 - from
            gb = bytes / 1e9
            per("cpu_busy_pct", 100 * (d["cpu_all"] - d["cpu_idle"]), d["cpu_all"])
            per("cpu_steal_pct", 100 * d["cpu_steal"], d["cpu_all"])
            if (gb > 0) {
                per("cpu_s_per_gb_all", (d["cpu_all"] - d["cpu_idle"]) / hz, gb)
                per("cpu_s_per_gb_softirq", d["cpu_softirq"] / hz, gb)
            }
            for (key in d) if (key ~ /^(kernel|drop)_/ && d[key] > 0) {
                name = key
                sub(/_h?[12]$/, "", name)
                sub(/_c[12]$/, "_container", name)
                total[name] += d[key]
            }
            for (name in total) print name, total[name]
            if (!("cpu_daemon1" in d)) exit
            if (gb > 0) {
                per("cpu_s_per_gb_sender", d["cpu_daemon" from] / hz, gb)
                per("cpu_s_per_gb_receiver", d["cpu_daemon" to] / hz, gb)
            }
            tun = d["count_tun_packets_" from]; udp = d["count_udp_packets_" to]
            per("segments_per_read", tun, d["count_tun_reads_" from])
            per("segments_per_send", tun, d["count_udp_sends_" from])
            per("segments_per_receive", udp, d["count_udp_receives_" to])
            per("segments_per_write", udp, d["count_tun_writes_" to])
            per("turns_per_64k_sender", d["count_turns_" from] * 65536, d["count_tun_bytes_" from])
            print "starved", d["count_starved_1"] + d["count_starved_2"]
            print "resent", d["count_resent_1"] + d["count_resent_2"]
        }' "$1" "$2"
}

# iperf_tcp FROM ADDRESS SECONDS STREAMS CC: the JSON of one run from container FROM; empty if it failed.
iperf_tcp() { in_ns "c$1" timeout $(($3 + 10)) iperf3 -c "$2" -t "$3" -P "$4" -C "$5" -J 2>>"$LAB_DIR/iperf.err" || true; }

# iperf_udp FROM ADDRESS SECONDS PAYLOAD BITS_PER_SECOND: the same for UDP; 0: as fast as it goes.
iperf_udp() { in_ns "c$1" timeout $(($3 + 10)) iperf3 -c "$2" -t "$3" -u -l "$4" -b "$5" -J 2>>"$LAB_DIR/iperf.err" || true; }

# tcp_figures, udp_figures PAYLOAD: `metric value` lines of such a JSON; `bytes` are those received.
tcp_figures() {
    jq -r 'if .error or (.end.sum_received.bytes // 0) == 0 then "failed 1" else
        .end as $e | $e.sum_sent.seconds as $s | ($e.sum_received.bytes / 1e9) as $gb |
        "mbps \($e.sum_received.bits_per_second / 1e6)", "bytes \($e.sum_received.bytes)",
        "retransmits \($e.sum_sent.retransmits // 0)",
        "cpu_s_per_gb_iperf \(($e.cpu_utilization_percent | .host_total + .remote_total) * $s / 100 / $gb)" end' || echo "failed 1"
}
udp_figures() {
    jq -r --argjson size "$1" 'if .error or (.end.sum_sent.packets // 0) == 0 then "failed 1" else
        .end as $e | $e.sum_sent.seconds as $s | ($e.sum_received.bytes / $size) as $got |
        "sent_pps \($e.sum_sent.packets / $s)", "received_pps \($got / $e.sum_received.seconds)",
        "loss_pct \(100 * (1 - $got / $e.sum_sent.packets))", "bytes \($e.sum_received.bytes)",
        (if $e.sum_received.bytes == 0 then empty else "cpu_s_per_gb_iperf \(($e.cpu_utilization_percent |
            .host_total + .remote_total) * $s / 100 / ($e.sum_received.bytes / 1e9))" end) end' || echo "failed 1"
}

# ping_figures: p50 and p99 in microseconds from ping's output.
ping_figures() {
    sed -n 's/.*time=\([0-9.]*\) ms.*/\1/p' | sort -n | awk '{ t[NR] = $1 * 1000 }
        END { if (!NR) { print "failed 1"; exit }
              printf "p50_us %.0f\np99_us %.0f\nanswers %d\n", t[int(NR * 0.5 + 0.5)], t[int(NR * 0.99 + 0.5)], NR }'
}
