# A PostgreSQL cluster and the heatfs volume beneath it. Sourced by the other scripts, never run.
#
# The caller sets:
#   WORK     a directory of its own that other users may enter
#   HEATFS   the binary
# and may set:
#   CAGE     words put before the server and the daemon, for example to put them into a cgroup
# shellcheck shell=bash

CAGE=()
DATA=            # the data directory: a plain directory or a mount
SERVER_PID=      # the postmaster; empty when no server runs
DAEMON_PID=      # the daemon; empty when none runs
VOLUME_CONFIG=   # the volume's settings file
LEDGER_PIDS=()
LOAD_PID=        # pgbench in the background; empty when none runs

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# wait_until SECONDS COMMAND...: true as soon as the command is
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# A zombie is gone: nobody may be there to reap the server.
gone() { [[ $(ps -o stat= -p "$1" 2>/dev/null || true) =~ ^Z?$|^Z ]]; }

mounted() { findmnt -n "$1" >/dev/null; }

# --- the server ------------------------------------------------------------------------------------------------

# PostgreSQL refuses to run as root; everybody else runs it as themselves.
if [[ $(id -u) == 0 ]]; then
    SERVER_USER=postgres
    AS_SERVER=(runuser -u "$SERVER_USER" --)
else
    SERVER_USER=$(id -un)
    AS_SERVER=()
fi
as_server() { "${AS_SERVER[@]}" "$@"; }

# cluster_find: sets PG_BIN, the newest PostgreSQL of this machine, and where its clients find it
cluster_find() {
    PG_BIN=$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
    [[ -x $PG_BIN/postgres ]] || die "no PostgreSQL server under /usr/lib/postgresql"
    PATH=$PG_BIN:$PATH
    mkdir -p "$WORK/run"
    chown "$SERVER_USER" "$WORK/run"
    export PGHOST=$WORK/run PGPORT=54321 PGUSER=postgres PGDATABASE=bench LC_ALL=C
}

# cluster_create DIR [SETTING...]: a new cluster, with page checksums
cluster_create() {
    local dir=$1
    shift
    as_server initdb -k -U postgres -A trust -D "$dir" >"$WORK/initdb.log" 2>&1 || die "initdb failed: $WORK/initdb.log"
    printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$PGHOST'" "port = $PGPORT" \
        'recovery_init_sync_method = fsync' "$@" | as_server tee -a "$dir/postgresql.conf" >/dev/null
}

# cluster_start DIR: starts the server there; it may have to recover first
cluster_start() {
    DATA=$1
    "${CAGE[@]}" "${AS_SERVER[@]}" pg_ctl -D "$DATA" -w -t 120 -l "$WORK/run/server.log" start >"$WORK/run/pg_ctl.log" 2>&1 || {
        tail -n 20 "$WORK/run/server.log" >&2
        die "PostgreSQL did not start on $DATA"
    }
    SERVER_PID=$(as_server head -n 1 "$DATA/postmaster.pid")
}

# cluster_stop [fast|immediate]: by signal, since the data directory may be gone
cluster_stop() {
    [[ -n $SERVER_PID ]] || return 0
    local signal=INT children pid
    [[ ${1:-fast} == immediate ]] && signal=QUIT
    children=$(pgrep -P "$SERVER_PID" || true)
    kill -"$signal" "$SERVER_PID" 2>/dev/null || true
    # a last checkpoint onto a slow disk takes its time
    if ! wait_until 300 gone "$SERVER_PID"; then
        # shellcheck disable=SC2086 # one word for each process
        kill -KILL "$SERVER_PID" $children 2>/dev/null || true
        wait_until 10 gone "$SERVER_PID" || die "the server (process $SERVER_PID) cannot be stopped"
    fi
    # PostgreSQL takes a process that nobody has reaped yet for a running server
    wait_until 30 test ! -e "/proc/$SERVER_PID" || true
    # a backend that outlives the postmaster would keep the next server from starting
    for pid in $children; do
        wait_until 10 gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
    done
    SERVER_PID=
}

sql() { as_server psql -qAtX -v ON_ERROR_STOP=1 "$@"; }

# Every table and index, page by page, each index against its table. Prints nothing when all is well.
cluster_verify() {
    as_server pg_amcheck --all --heapallindexed --install-missing
}

# pgbench moves the same amounts in four tables in one transaction: after any crash the sums must agree.
balances_agree() {
    [[ $(sql -c "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)
        and (select sum(abalance) from pgbench_accounts) = (select sum(tbalance) from pgbench_tellers)
        and (select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta), 0) from pgbench_history)") == t ]]
}

# --- the ledger: what clients were told is committed ----------------------------------------------------------

# ledger_create: the table, and the folder outside of the volume where acknowledged ids are noted
ledger_create() {
    sql -c 'create table ledger (id bigserial primary key, client int not null, noted timestamptz default now())'
    mkdir -p "$WORK/acknowledged"
}

# ledger_start CLIENTS: each inserts one row a transaction until the server goes away. psql prints the id only
# once the server has said that the transaction is committed.
ledger_start() {
    local client
    for ((client = 1; client <= $1; client++)); do
        { yes "insert into ledger (client) values ($client) returning id;" 2>/dev/null |
            PGAPPNAME=ledger sql -f - >>"$WORK/acknowledged/$client" 2>/dev/null || true; } &
        LEDGER_PIDS+=($!)
    done
}

ledger_wait() {
    ((${#LEDGER_PIDS[@]} == 0)) || wait "${LEDGER_PIDS[@]}" || true
    LEDGER_PIDS=()
}

# bench_load_start CLIENTS LEDGER_CLIENTS: pgbench and the ledger, until bench_load_stop
bench_load_start() {
    ledger_start "$2"
    as_server pgbench -n -c "$1" -T 360000 >>"$WORK/pgbench.log" 2>&1 &
    LOAD_PID=$!
}

# Both end as soon as the server ends their sessions: it is asked to, and may be gone already, or be stopped next.
bench_load_stop() {
    [[ -n $LOAD_PID ]] || return 0
    local end="select pg_terminate_backend(pid) from pg_stat_activity where application_name in ('pgbench', 'ledger')"
    if as_server timeout 10 psql -qAtX -c "$end" >/dev/null 2>&1; then
        wait_until 30 gone "$LOAD_PID" || true
        ledger_wait
    fi
    kill "$LOAD_PID" "${LEDGER_PIDS[@]}" 2>/dev/null || true
    wait "$LOAD_PID" 2>/dev/null || true
    ledger_wait
    LOAD_PID=
}

ledger_acknowledged() { cat "$WORK"/acknowledged/* | wc -l; }

# ledger_missing: how many acknowledged rows the database does not have
ledger_missing() {
    {
        echo 'create temp table acknowledged (id bigint);'
        echo 'copy acknowledged from stdin;'
        cat "$WORK"/acknowledged/*
        echo '\.'
        echo 'select count(*) from acknowledged left join ledger using (id) where ledger.id is null;'
    } | sql -f -
}

# --- the volume -------------------------------------------------------------------------------------------------

# heatfs_find: sets HEATFS to a fresh release build, unless it names a binary already. In the repository's directory.
heatfs_find() {
    if [[ -z ${HEATFS:-} ]]; then
        scripts/install-deps
        cargo build --release --locked
        HEATFS=$(cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)/release/heatfs
    fi
    HEATFS=$(readlink -f "$HEATFS")
}

heatfs() { "$HEATFS" "$@"; }

# either it serves or it has given up
daemon_settled() {
    gone "$DAEMON_PID" || { mounted "$1" && heatfs status --config "$VOLUME_CONFIG" >/dev/null 2>&1; }
}

# daemon_start CONFIG MOUNT: returns when the mount answers
daemon_start() {
    VOLUME_CONFIG=$1
    "${CAGE[@]}" "$HEATFS" daemon --config "$VOLUME_CONFIG" >>"$WORK/daemon.log" 2>&1 &
    DAEMON_PID=$!
    if ! wait_until 120 daemon_settled "$2" || gone "$DAEMON_PID"; then
        tail -n 20 "$WORK/daemon.log" >&2
        die "the daemon did not come up"
    fi
}

# daemon_stop: a clean stop; the volume is unmounted after
daemon_stop() {
    [[ -n $DAEMON_PID ]] || return 0
    heatfs stop --config "$VOLUME_CONFIG" >/dev/null || kill -TERM "$DAEMON_PID"
    wait_until 120 gone "$DAEMON_PID" || die "the daemon (process $DAEMON_PID) does not stop"
    wait "$DAEMON_PID" || die "the daemon ended with an error: $(tail -n 3 "$WORK/daemon.log")"
    DAEMON_PID=
}

daemon_kill9() {
    [[ -n $DAEMON_PID ]] || return 0
    kill -KILL "$DAEMON_PID" 2>/dev/null || true
    wait "$DAEMON_PID" 2>/dev/null || true
    DAEMON_PID=
}

# detach_dead_mount DIR: what a killed daemon leaves behind
detach_dead_mount() {
    mounted "$1" || return 0
    if [[ $(id -u) == 0 ]]; then umount -l "$1"; else fusermount3 -uz "$1"; fi
}

# cluster_abandon DIR...: whatever runs is stopped, dead or not; for traps. The directories are unmounted.
cluster_abandon() {
    local dir
    cluster_stop immediate 2>/dev/null || true
    ((${#LEDGER_PIDS[@]} == 0)) || kill "${LEDGER_PIDS[@]}" 2>/dev/null || true
    if [[ -n $DAEMON_PID ]] && ! gone "$DAEMON_PID"; then
        kill -TERM "$DAEMON_PID" 2>/dev/null || true
        wait_until 20 gone "$DAEMON_PID" || true
    fi
    daemon_kill9
    for dir in "$@"; do detach_dead_mount "$dir" || true; done
}
