# Three simulated disks; and what scripts/bench compares on them: a memory limit around server and daemon, and the sides: native
# directories, mergerfs and heatfs volumes. Sourced by scripts/bench, scripts/torture and scripts/soak after scripts/cluster.bash, never run.
#
# The caller sets WORK, REPOSITORY and LAB (the lab's directory, under WORK); scripts/bench also SCALE (pgbench's) and QUICK.
# shellcheck shell=bash

MEMORY_LIMIT_BYTES=$((300 << 20))
MEMORY_CGROUP=
CPU_CGROUP=
declare -A SIDE_CONFIG=() # heatfs sides that exist -> their settings file

# lab_find: sets TIERLAB, the lab's program
lab_find() {
    TIERLAB=${HEATFS_SHARED:-$REPOSITORY/../shared}/tierlab/tierlab
    if [[ ! -e $TIERLAB ]]; then
        echo "${0##*/}: no tier lab at $TIERLAB; set HEATFS_SHARED to the directory that holds it" >&2
        exit 2
    fi
    TIERLAB=$(readlink -f "$TIERLAB")
    [[ $(id -u) == 0 ]] || die 'needs root'
}

tierlab() { TIERLAB_DIR=$LAB bash "$TIERLAB" "$@"; }

# disk_counter DISK NAME: a counter of the simulated disk, for example: hdd reads
disk_counter() { tierlab stats "$1" | awk -v want="$1 $2" -F= '$1 == want { print $2 }'; }

disk() { echo "$LAB/mnt/$1"; }

# lab_up [NVME SATA HDD]: disks of these sizes. Sparse images; what is written of them lives in the machine's page cache.
lab_up() {
    TIERLAB_SIZE_NVME=${1:-16G} TIERLAB_SIZE_SATA=${2:-8G} TIERLAB_SIZE_HDD=${3:-16G} tierlab up "$LAB"
    chmod 755 "$LAB" "$LAB/mnt" "$(disk nvme)" "$(disk sata)" "$(disk hdd)"
}

# lab_forget: nothing of the disks is in the page cache, and all of what lies on them is in memory, so that the simulated disks are measured
# and not the one that keeps their images: the lab asks the kernel for that, which reads a small part of each range.
lab_forget() {
    tierlab drop-caches
    tar --sparse --warning=no-file-changed -cf - -C "$LAB" img | cat >/dev/null || (($? == 1)) # 1: it changed meanwhile
}

lab_down() { [[ ! -e $LAB/run/fs ]] || tierlab purge "$LAB"; }

# --- memory and processor ----------------------------------------------------------------------------------------

# cage_create: server and daemon share a memory cgroup, so that the page cache does not hide the disks. Sets CAGE.
cage_create() {
    if [[ -d /sys/fs/cgroup/memory ]]; then
        MEMORY_CGROUP=/sys/fs/cgroup/memory/heatfs-bench
        mkdir -p "$MEMORY_CGROUP"
        echo "$MEMORY_LIMIT_BYTES" >"$MEMORY_CGROUP/memory.limit_in_bytes"
    else
        MEMORY_CGROUP=/sys/fs/cgroup/heatfs-bench
        echo +memory >/sys/fs/cgroup/cgroup.subtree_control
        mkdir -p "$MEMORY_CGROUP"
        echo "$MEMORY_LIMIT_BYTES" >"$MEMORY_CGROUP/memory.max"
        echo 0 >"$MEMORY_CGROUP/memory.swap.max"
    fi
    # shellcheck disable=SC2016 # expanded by the inner shell
    CAGE=(bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$MEMORY_CGROUP")
}

# favour_self: 64 times the processor shares of others, for this script and all that it starts (cgroup v1)
favour_self() {
    [[ -d /sys/fs/cgroup/cpu ]] || die '--favour needs the cpu controller of cgroup v1'
    CPU_CGROUP=/sys/fs/cgroup/cpu/heatfs-bench
    mkdir -p "$CPU_CGROUP"
    echo 65536 >"$CPU_CGROUP/cpu.shares"
    echo $$ >"$CPU_CGROUP/cgroup.procs"
}

cages_remove() {
    [[ -z $MEMORY_CGROUP ]] || wait_until 10 rmdir "$MEMORY_CGROUP" 2>/dev/null || true
    if [[ -n $CPU_CGROUP ]]; then
        echo $$ >/sys/fs/cgroup/cpu/cgroup.procs
        wait_until 10 rmdir "$CPU_CGROUP" 2>/dev/null || true
    fi
}

# --- sides ---------------------------------------------------------------------------------------------------------

# side_dir SIDE: where the side's files are seen
side_dir() {
    case $1 in
    native-*) echo "$(disk "${1#native-}")/native" ;;
    mergerfs) echo "$WORK/mergerfs" ;;
    heatfs-nvme | heatfs-uring | heatfs-copy) echo "$(disk nvme)/$1" ;;
    heatfs-*) echo "$(disk hdd)/$1" ;;
    esac
}

# side_create SIDE SOURCE [ADOPT ARGUMENTS...]: a copy of SOURCE (empty: an empty directory) on that side
side_create() {
    local side=$1 source=$2 dir
    shift 2
    dir=$(side_data "$side")
    [[ $side != mergerfs ]] || mergerfs_up
    install -d -o "$SERVER_USER" -m 700 "$dir"
    [[ -z $source ]] || cp -a --sparse=never "$source/." "$dir/"
    sync -f "$dir"
    case $side in
    heatfs-*) heatfs_create "$side" "$dir" "$@" ;;
    mergerfs) mergerfs_down ;;
    esac
}

# Whole files by first fit. Ballast on the disks leaves it the budgets of the peers' measurements, while it is in use.
mergerfs_up() {
    local name budget used free branches=
    for name in nvme:600 sata:1229 hdd:4096; do
        budget=$((${name#*:} << 20))
        name=${name%:*}
        mkdir -p "$(disk "$name")/mergerfs" "$WORK/mergerfs"
        used=$(du -sB1 "$(disk "$name")/mergerfs" | cut -f 1)
        free=$(df --output=avail -B1 "$(disk "$name")" | tail -n 1)
        fallocate -l $((free - budget + used)) "$(disk "$name")/ballast"
        branches+=:$(disk "$name")/mergerfs
    done
    chmod 755 "$WORK/mergerfs"
    "${CAGE[@]}" mergerfs -o allow_other,use_ino,cache.files=auto-full,category.create=ff,minfreespace=16M,moveonenospc=true \
        "${branches#:}" "$WORK/mergerfs"
}

mergerfs_down() {
    ! mounted "$WORK/mergerfs" || wait_until 10 umount "$WORK/mergerfs"
    rm -f "$LAB"/mnt/*/ballast
}

heatfs_create() {
    local side=$1 dir=$2 name tiers=()
    shift 2
    for name in nvme sata hdd; do
        [[ ! $side =~ ^heatfs-(nvme|uring)$ || $name == nvme ]] || continue
        mkdir -p "$(disk "$name")/$side.tier"
        tiers+=(--tier "$name=$(disk "$name")/$side.tier")
    done
    heatfs adopt "$dir" "${tiers[@]}" --name "$side" --config-out "$WORK/$side.toml" "$@" >"$WORK/$side.adopt.log"
    SIDE_CONFIG[$side]=$WORK/$side.toml
}

# side_up SIDE, side_down SIDE: the side's files can be used, or nothing of it runs
side_up() {
    case $1 in
    heatfs-*) daemon_start "${SIDE_CONFIG[$1]}" "$(side_dir "$1")" ;;
    mergerfs) mergerfs_up ;;
    esac
}

side_down() {
    case $1 in
    heatfs-*) daemon_stop ;;
    mergerfs) mergerfs_down ;;
    esac
}

# side_data SIDE: the data directory of the server there
side_data() { if [[ $1 == mergerfs ]]; then echo "$(side_dir "$1")/data"; else side_dir "$1"; fi; }

serve() {
    side_up "$1"
    cluster_start "$(side_data "$1")"
    lab_forget
}

unserve() {
    cluster_stop fast
    side_down "$1"
}

# template_create: the database that every side gets a copy of, made once
template_create() {
    TEMPLATE=$WORK/template-s$SCALE
    [[ ! -e $TEMPLATE/made ]] || return 0
    rm -rf "$TEMPLATE"
    install -d -o "$SERVER_USER" -m 755 "$TEMPLATE"
    install -d -o "$SERVER_USER" -m 700 "$TEMPLATE/data"
    cluster_create "$TEMPLATE/data" 'shared_buffers = 64MB' 'checkpoint_timeout = 60s' 'full_page_writes = on' \
        'max_wal_size = 128MB' # so that the copies need not carry a gigabyte of recycled WAL
    local caged=("${CAGE[@]}")
    CAGE=()
    cluster_start "$TEMPLATE/data"
    as_server createdb bench
    as_server pgbench -i -q -s "$SCALE" >"$WORK/pgbench-init.log" 2>&1
    cluster_stop fast
    echo 'max_wal_size = 1GB' >>"$TEMPLATE/data/postgresql.conf"
    CAGE=("${caged[@]}")
    touch "$TEMPLATE/made"
}

# daemon_json FILTER: of the running daemon's status
daemon_json() { heatfs status --json --config "$VOLUME_CONFIG" | jq -r "$1"; }

# daemon_counter FILTER: of the engine's counters, wherever the status nests them
daemon_counter() { daemon_json "[.. | objects | .counters? // empty][0] $1"; }

daemon_rss_kib() { awk '/^VmRSS/ { print $2 }' "/proc/$DAEMON_PID/status"; }

# what_clairvoyance_gives PAGES CACHED_PAGES: the share of the Zipf load's reads that go to each tier when the hottest quarter of pages is on
# nvme, the next on sata, known in advance, behind a cache that always holds the hottest CACHED_PAGES
what_clairvoyance_gives() {
    awk -v pages="$1" -v cached="$2" 'BEGIN {
        for (i = 1; i <= pages; i++) total += i ^ -1.05
        for (i = cached + 1; i <= pages; i++) {
            rank = i - cached
            tier[rank <= pages / 4 ? 1 : rank <= pages / 2 ? 2 : 3] += i ^ -1.05 / total
        }
        printf "nvme %.3f, sata %.3f, hdd %.3f of all transactions\n", tier[1], tier[2], tier[3]
    }'
}
