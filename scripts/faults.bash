# Faults of one device beneath a running volume: what readers, writers, fsync, status, metrics and exit codes do, and whether everything
# is there once the device works again. Sourced by scripts/torture, which has the lab, the loads and the checks; never run.
#
# A run is FAULT-PLACE: the place is a tier, or the log, which lies on nvme as names and state do. SEMANTICS.md says what each has to look like.
# shellcheck shell=bash

FAULT_KINDS=(read-{nvme,sata,hdd,log} write-{nvme,sata,hdd,log} sync-{nvme,sata,hdd} full-{nvme,sata,hdd} slow-{nvme,sata,hdd}
    hang-{nvme,sata,hdd} sector-{nvme,sata,hdd} rescued-{sata,hdd} corrupt-{nvme,sata,hdd} unplug-{nvme,sata,hdd})
FAULT_COLUMNS=fault,disks,'reads there','reads elsewhere','write+fsync','log applied',health,'status exits','read errors',load,'healed by'
STILL_BYTES=$((7 << 20))
HANG_SECONDS=8
FAULT_SECONDS=4 # of load while it lasts, before anybody asks

# fault_expected FAULT PLACE: what reads there, reads elsewhere, a write with fsync, and health may be, as patterns
fault_expected() {
    # names and state lie on the fastest tier too, so that files of others may not be opened; xfs refuses every call once it has shut down
    local opened=ok
    [[ $FS != xfs ]] || opened='ok|EIO'
    case $1-$2 in
    # who reads back what is in the log alone, and not in memory any more, hears of it
    # a record that cannot be read holds the log from being drained
    read-log) echo 'ok|EIO ok ok|EIO|ENOSPC|log-full healthy|degraded' ;;
    read-nvme) echo 'EIO ok|EIO ok|EIO|EROFS degraded|read-only' ;;
    # what is written there first is the log, and I5 holds
    write-nvme | write-log | sync-nvme) echo "$opened $opened EROFS|EIO read-only" ;;
    unplug-nvme) echo 'EIO ok|EIO EROFS|EIO read-only' ;;
    # no room for names; the log and state have their own
    full-nvme) echo 'ok ok ok|ENOSPC healthy|degraded' ;;
    slow-*) echo 'ok ok ok healthy' ;;
    hang-nvme) echo 'waits ok|waits waits healthy' ;;
    # believed, since bases carry no checksums
    corrupt-*) echo 'other ok ok healthy' ;;
    # a bad sector, and a snapshot that has what was there
    rescued-*) echo 'ok ok ok degraded' ;;
    # below the fastest tier: who reads from there alone hears of it
    read-* | sector-*) echo 'EIO ok ok degraded' ;;
    write-* | sync-*) echo "$opened ok ok degraded" ;;
    unplug-*) echo 'EIO ok ok degraded' ;;
    full-*) echo 'ok ok ok healthy|degraded' ;;
    hang-*) echo 'waits ok ok|log-full healthy' ;;
    esac
}

fault_run() {
    FAULT=${1%-*} PLACE=${1#*-}
    TIER=${PLACE/log/nvme}
    DIR=$(disk nvme)/data # which has to be mounted anew only where the daemon cannot go on anyway
    FAULTY=
    volume_plan
    "${ADOPT[@]}" >"$WORK/adopt.log"
    if [[ $FAULT == rescued ]]; then
        export HEATFS__SNAPSHOT__REPOSITORY=$WORK/repository
        heatfs repo init "$HEATFS__SNAPSHOT__REPOSITORY" >"$WORK/repo.log"
    fi
    daemon_start "$VOLUME_CONFIG" "$DIR"
    prepare_files
    stills_place
    [[ $FAULT != rescued ]] || heatfs snapshot create --config "$VOLUME_CONFIG" >"$WORK/snapshot.log"
    start_files
    pause_between 500 1500
    fault_begin
    sleep "$FAULT_SECONDS"
    fault_observe
    fault_end
    fault_verify
    fault_note
    leave files
}

# A file on each tier, known, and quiet from now on
stills_place() {
    local tier
    for tier in nvme sata hdd; do
        head -c "$STILL_BYTES" /dev/urandom >"$DIR/still-$tier"
        heatfs pin "$DIR/still-$tier" --tier "$tier" --config "$VOLUME_CONFIG" >>"$WORK/pin.log"
    done
    (cd "$DIR" && sha256sum still-*) >"$WORK/stills"
    wait_until 90 stills_are_placed || die "files do not come to their tiers: $(heatfs tiers --config "$VOLUME_CONFIG")"
}

stills_are_placed() {
    local tier blocks
    heatfs settle --config "$VOLUME_CONFIG" >/dev/null && heatfs checkpoint --config "$VOLUME_CONFIG" >/dev/null
    for tier in nvme sata hdd; do
        blocks=$(find "$(disk $tier)/tier/objects" -type f -printf '%b\n' | sort -n | tail -n 1)
        ((${blocks:-0} * 512 >= STILL_BYTES)) || { sleep 1 && return 1; }
    done
}

# still_object TIER: the object that has the tier's still file
still_object() { find "$(disk "$1")/tier/objects" -type f -printf '%b %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2; }

# log_range: the longest part of its disk that is the log's alone, as lo= and hi=
log_range() {
    find "$(disk nvme)/tier/log" -type f -exec filefrag -b1 -v -e {} + | awk '$1 ~ /^[0-9]+:$/ { gsub(/[.:]+/, " "); print $4, $5 + 1 }' | sort -n |
        awk '$1 != end { start = $1 } { end = $2; if (end - start > longest) { longest = end - start; lo = start; hi = end } }
            END { print "lo=" lo, "hi=" hi }'
}

fault_begin() {
    local range=() object
    [[ $PLACE != log ]] || read -ra range < <(log_range)
    tierlab drop-caches
    say "$FAULT on $PLACE ${range[*]}"
    case $FAULT in
    read) tierlab fail "$TIER" ops=r "${range[@]}" ;;
    write) tierlab fail "$TIER" ops=w "${range[@]}" ;;
    sync) tierlab fail "$TIER" ops=f ;;
    unplug) tierlab fail "$TIER" ;;
    slow) tierlab slow "$TIER" 100x ;;
    hang) tierlab hang "$TIER" ;;
    full) fill_disk ;;
    sector | rescued | corrupt)
        object=$(still_object "$TIER")
        if [[ $FAULT != corrupt ]]; then tierlab fail-file "$TIER" "$object" $((1 << 20)) 4096; else tierlab corrupt "$TIER" "$object" $((1 << 20)) 512; fi
        ;;
    esac
}

# Really full, also for root: what allocates nothing more
fill_disk() {
    local free
    while free=$(df --output=avail -B1 "$(disk "$TIER")" | tail -n 1) && ((free > 65536)); do
        fallocate -l $((free > 1 << 20 ? free - (free >> 4) : 65536)) "$(disk "$TIER")/ballast-$free" 2>/dev/null || break
    done
    head -c $((64 << 20)) /dev/zero 2>/dev/null >>"$(disk "$TIER")/ballast" || true
    say "  $(df --output=avail -B1 "$(disk "$TIER")" | tail -n 1) bytes are left"
}

# probe NAME SECONDS COMMAND...: sets PROBED to ok, the error that the command told of, or waits if it has not ended by then.
# A call on the mount cannot be ended from outside: it is left to end when the device answers again.
probe() {
    local name=$1 seconds=$2 out=$WORK/probe.$1
    shift 2
    rm -f "$out" "$out.code"
    { code=0; "$@" >"$out" 2>&1 || code=$?; echo "$code" >"$out.code"; } &
    if ! wait_until "$seconds" test -s "$out.code"; then
        PROBED=waits
    elif [[ $(<"$out.code") == 0 ]]; then
        PROBED=ok
    else
        case $(<"$out") in
        *'Input/output error'*) PROBED=EIO ;;
        *'Read-only file system'*) PROBED=EROFS ;;
        *'No space left'*) PROBED=ENOSPC ;;
        *) PROBED="exit $(<"$out.code")" ;;
        esac
    fi
    say "  $name: $PROBED $(tail -n 1 "$out" | head -c 300)"
}

# still_read TIER: by the daemon, not by the page cache of the mount; the bytes, too
still_read() {
    local sum
    sum=$(set -o pipefail; dd if="$DIR/still-$1" iflag=direct bs=256k status=none | sha256sum) || return 1
    [[ ${sum%% *} == "$(awk -v f="still-$1" '$2 == f { print $1 }' "$WORK/stills")" ]] || { echo 'other bytes' && return 9; }
}

new_file_write() { dd if=/dev/urandom of="$DIR/new-$SECONDS" bs=64k count=8 conv=fsync status=none; }

# the exit code of `heatfs status` and what it says
status_told() {
    HEALTH=$(timeout 20 "$HEATFS" status --json --config "$VOLUME_CONFIG" 2>/dev/null >"$WORK/status.json" && echo 0 || echo $?)
    STATUS_EXIT=$HEALTH
    HEALTH=$(jq -r .health "$WORK/status.json" 2>/dev/null || echo "exit $STATUS_EXIT")
}

log_is_full() {
    status_told
    say "  log: $(jq -c '.volume.log' "$WORK/status.json" 2>/dev/null)"
    jq -e '.volume.log.free_segments <= 1' "$WORK/status.json" >/dev/null 2>&1
}

metric() { curl -s --max-time 20 --unix-socket "$HEATFS__SOCKET" http://heatfs/metrics | awk -v name="$1" 'index($1, name) == 1 && !told++ { print $2 }'; }

fault_observe() {
    local tier load expected patience=120
    # applying the log is what brings writes to the tiers
    probe settle 20 heatfs settle --config "$VOLUME_CONFIG"
    SETTLED=$PROBED
    # it syncs every disk: one that hangs would keep it for ever
    [[ $FAULT == hang ]] || tierlab drop-caches 2>/dev/null || true
    [[ $FAULT != hang ]] || patience=$HANG_SECONDS
    probe write "$patience" new_file_write
    WRITTEN=$PROBED
    # the log here is small, and nothing can be taken out of it in order while a disk answers nothing
    [[ $WRITTEN != waits ]] || ! log_is_full || WRITTEN=log-full
    OTHERS=ok
    for tier in nvme sata hdd; do
        [[ $tier != "$TIER" ]] || continue
        probe "read-$tier" 20 still_read "$tier"
        [[ $PROBED == ok ]] || OTHERS=$PROBED
    done
    probe read-there "$patience" still_read "$TIER"
    OWN=${PROBED/exit 9/other}
    # a sector costs its own pages alone
    if [[ $FAULT == sector ]]; then
        probe read-beside 20 dd if="$DIR/still-$TIER" iflag=direct bs=4096 skip=$(((1 << 20) / 4096 + 1)) count=64 of=/dev/null status=none
        [[ $PROBED == ok ]] || lost "$FAULT on $PLACE: pages beside the bad one cannot be read" <"$WORK/probe.read-beside"
    fi
    status_told
    ERRORS=$(metric "heatfs_base_read_errors_total{tier=\"$TIER\"}")
    load=goes
    loads_gone && load=ended
    LOAD=$load
    say "  health $HEALTH ($(jq -r '.reasons | join("; ")' "$WORK/status.json" 2>/dev/null)), exit code $STATUS_EXIT, read errors $ERRORS, load $LOAD"
    read -ra expected < <(fault_expected "$FAULT" "$PLACE")
    # all that there was to apply could be: then nothing had to be written there
    [[ $FAULT-$SETTLED != @(write|sync)-ok ]] || expected[3]+='|healthy'
    agrees 'reads there' "$OWN" "${expected[0]}"
    agrees 'reads elsewhere' "$OTHERS" "${expected[1]}"
    agrees 'a write with fsync' "$WRITTEN" "${expected[2]}"
    agrees health "$HEALTH" "${expected[3]}"
    agrees 'exit code of status' "$STATUS_EXIT" "$([[ $HEALTH == healthy ]] && echo 0 || echo 1)"
    agrees 'the metric healthy' "$(metric heatfs_healthy | cut -d. -f1)" "$([[ $HEALTH == healthy ]] && echo 1 || echo 0)"
    agrees 'the metric read_only' "$(metric heatfs_read_only | cut -d. -f1)" "$([[ $HEALTH == read-only ]] && echo 1 || echo 0)"
    # a read that got as far as the tier; where the name could not even be found there was none
    if [[ $FAULT == rescued ]]; then
        agrees 'reads rescued' "$(($(metric "heatfs_base_reads_rescued_total{tier=\"$TIER\"}" | cut -d. -f1) > 0))" 1
    fi
    if [[ $OWN == EIO && $TIER != nvme ]]; then agrees 'errors counted' "$((10#0${ERRORS%%.*} > 0))" 1; fi
    # who writes and syncs is not held up by what goes wrong below the fastest tier; but a page of which a part is written has to be read
    if [[ $FAULT =~ ^(read|sector|unplug)$ ]]; then
        agrees 'the load' "$LOAD" 'goes|ended'
    elif [[ ${expected[2]} == @(ok|ok'|'log-full) ]]; then
        agrees 'the load' "$LOAD" goes
    fi
}

loads_gone() {
    local pid
    for pid in "${LOAD_PIDS[@]}"; do ! gone "$pid" || return 0; done
    return 1
}

# agrees WHAT IS PATTERN: patterns are words with | between them
agrees() { [[ "|$3|" == *"|$2|"* ]] || lost "$FAULT on $PLACE: $1: $2, not $3" </dev/null; }

# The device works again. A filesystem that gave up meanwhile has to be mounted anew, and so the daemon started again.
fault_end() {
    HEALED=itself
    [[ $FAULT != full ]] || rm -f "$(disk "$TIER")"/ballast*
    if [[ $FAULT == corrupt ]]; then
        HEALED='nobody'
    elif ! tierlab heal "$TIER" 2>"$WORK/heal.log"; then
        say "  $(tail -n 1 "$WORK/heal.log")"
        HEALED=restart
    elif [[ $HEALTH == read-only ]]; then
        HEALED=restart
    fi
    if [[ $HEALED == restart ]]; then
        files_stop
        daemon_end
        tierlab remount "$TIER"
        daemon_start "$VOLUME_CONFIG" "$DIR"
    else
        # what waited goes on, and ends well
        for name in write read-there; do
            wait_until 60 test -s "$WORK/probe.$name.code" || lost "$name still waits" </dev/null
            [[ $FAULT != hang || $(cat "$WORK/probe.$name.code") == 0 ]] || lost "$name failed after the disk went on" <"$WORK/probe.$name"
        done
        sleep 1
        [[ $LOAD == ended ]] || ! loads_gone || lost 'the load ended after the disk was healed' <"$WORK/loads.log"
        files_stop
    fi
}

files_stop() {
    local pid
    kill -TERM "${LOAD_PIDS[@]}" 2>/dev/null || true
    for pid in "${LOAD_PIDS[@]}"; do
        wait_until 60 gone "$pid" || die "a load (process $pid) does not end"
        wait "$pid" 2>/dev/null || true
    done
    LOAD_PIDS=()
}

# A stop with a dead disk: it ends, and its exit code says whether all is on the tiers
daemon_end() {
    local code=0
    timeout 60 "$HEATFS" stop --config "$VOLUME_CONFIG" >"$WORK/stop.log" 2>&1 || code=$?
    wait_until 60 gone "$DAEMON_PID" || lost 'the daemon does not stop beneath a dead disk' <"$WORK/stop.log"
    local ended=0
    wait "$DAEMON_PID" 2>/dev/null || ended=$?
    say "  stop: exit code $code; the daemon's: $ended; $(tail -n 1 "$WORK/stop.log")"
    daemon_kill9
    detach_dead_mount "$DIR"
}

settles() { heatfs settle --config "$VOLUME_CONFIG" >"$WORK/settle.log" 2>&1 || { sleep 1 && return 1; }; }
healthy() { heatfs status --config "$VOLUME_CONFIG" >"$WORK/status.log" 2>&1; }

fault_verify() {
    local tier
    check_files "$FAULT-$PLACE"
    tierlab drop-caches
    for tier in nvme sata hdd; do
        if [[ $FAULT == corrupt && $tier == "$TIER" ]]; then continue; fi
        still_read "$tier" >"$WORK/still.log" 2>&1 || lost "still-$tier, after the disk was healed" <"$WORK/still.log"
    done
    heatfs check --deep --config "$VOLUME_CONFIG" >"$WORK/check.log" 2>&1 || lost 'heatfs check --deep, after the disk was healed' <"$WORK/check.log"
    # what failed is tried again after five seconds
    wait_until 30 settles || lost 'settle, after the disk was healed' <"$WORK/settle.log"
    wait_until 40 healthy || lost 'not healthy again' <"$WORK/status.log"
}

fault_note() {
    echo "$FAULT-$PLACE,$FS,$OWN,$OTHERS,$WRITTEN,$SETTLED,$HEALTH,$STATUS_EXIT,${ERRORS:-?},$LOAD,$HEALED" >>"$RESULTS/faults.csv"
}

print_faults() {
    { echo "$FAULT_COLUMNS" && sort -u "$RESULTS/faults.csv"; } | column -t -s ,
}
