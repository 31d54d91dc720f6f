/* What a power cut would leave: remembers, below one folder, what was ever flushed.
 *
 *   LOSTWRITES_ROOT   the folder (absolute, without links)
 *   LOSTWRITES_LOG    where the memory is: content/, folder/, poison/, before/, flushes
 *   LOSTWRITES_KILL   N: SIGKILL to itself before the N-th flush of this process
 *   LOSTWRITES_FAIL   N: the N-th flush of this process fails with EIO, once
 *
 * Loaded by LD_PRELOAD. A flush of a file copies its content, a flush of a folder its
 * list of entries, each under the inode's id (number and time of birth: numbers are used
 * again). The real flush is left out: this memory is the disk. What is on the disk beyond
 * it is what a power cut takes, so writes, renames and removals need no watching.
 *
 * A flush that failed has the kernel call the pages clean that it could not write: a later
 * flush says that all is well and does not write them. So after a failed flush the content
 * is kept in poison/<id>: whoever reads the memory takes a page that is still as it was
 * then for lost. Cutting a file to another length makes its pages new.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static long flushes;
static pid_t counted_by;

static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_ftruncate64)(int, off64_t);
static int (*real_open)(const char *, int, ...);
static int (*real_open64)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_openat64)(int, const char *, int, ...);

__attribute__((constructor)) static void begin(void) {
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    real_ftruncate64 = dlsym(RTLD_NEXT, "ftruncate64");
    real_open = dlsym(RTLD_NEXT, "open");
    real_open64 = dlsym(RTLD_NEXT, "open64");
    real_openat = dlsym(RTLD_NEXT, "openat");
    real_openat64 = dlsym(RTLD_NEXT, "openat64");
}

static void broken(const char *what) {
    static const char words[] = "lostwrites: cannot remember: ";
    if (write(2, words, sizeof words - 1) < 0 || write(2, what, strlen(what)) < 0 ||
        write(2, "\n", 1) < 0)
        abort();
    abort();
}

/* The path of an open file if it lies below the folder and has a name; else 0. */
static int below(int fd, char *path, size_t size) {
    const char *root = getenv("LOSTWRITES_ROOT");
    char link[64];
    if (!root || !getenv("LOSTWRITES_LOG"))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, size - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    size_t own = strlen(root);
    return !strncmp(path, root, own) && (path[own] == '/' || path[own] == 0);
}

static void id_of(int folder, const char *name, int flags, char *id, size_t size, char *kind) {
    struct statx facts;
    if (statx(folder, name, flags, STATX_INO | STATX_BTIME | STATX_TYPE, &facts)) {
        id[0] = 0;
        return;
    }
    snprintf(id, size, "%llu-%lld.%09u", (unsigned long long)facts.stx_ino,
             (long long)facts.stx_btime.tv_sec, facts.stx_btime.tv_nsec);
    *kind = S_ISDIR(facts.stx_mode) ? 'd' : S_ISREG(facts.stx_mode) ? 'f' : '-';
}

static int beside(const char *part, const char *id, char *path, size_t size, char *temporary) {
    const char *log = getenv("LOSTWRITES_LOG");
    snprintf(path, size, "%s/%s/%s", log, part, id);
    snprintf(temporary, size, "%s/%s/.%s.%d", log, part, id, (int)getpid());
    return real_open64(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

static void put(int out, const char *data, size_t left) {
    while (left) {
        ssize_t count = write(out, data, left);
        if (count <= 0)
            broken(strerror(errno));
        data += count;
        left -= count;
    }
}

static void keep_content(int fd, const char *part, const char *id) {
    char path[4096], temporary[4096], link[64], block[65536];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int in = real_open64(link, O_RDONLY | O_CLOEXEC), out = beside(part, id, path, 4096, temporary);
    if (in < 0 || out < 0)
        broken(path);
    ssize_t count;
    while ((count = read(in, block, sizeof block)) > 0)
        put(out, block, count);
    close(in);
    close(out);
    if (count < 0 || rename(temporary, path))
        broken(path);
}

static void keep_poison(int fd, const char *id) {
    char durable[4096], before[4096];
    snprintf(durable, sizeof durable, "%s/content/%s", getenv("LOSTWRITES_LOG"), id);
    snprintf(before, sizeof before, "%s/before/%s", getenv("LOSTWRITES_LOG"), id);
    if (link(durable, before) && errno != EEXIST && errno != ENOENT)
        broken(before);
    keep_content(fd, "poison", id);
}

static void keep_entries(int fd, const char *id) {
    char path[4096], temporary[4096], link[64], line[4096], other[128], kind;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int in = real_open64(link, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int out = beside("folder", id, path, 4096, temporary);
    DIR *folder = in < 0 ? NULL : fdopendir(in);
    if (!folder || out < 0)
        broken(path);
    struct dirent64 *entry;
    while ((entry = readdir64(folder))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        id_of(in, entry->d_name, AT_SYMLINK_NOFOLLOW, other, sizeof other, &kind);
        if (other[0]) {
            int length = snprintf(line, sizeof line, "%c %s %s\n", kind, other, entry->d_name);
            put(out, line, length);
        }
    }
    closedir(folder);
    close(out);
    if (rename(temporary, path))
        broken(path);
}

static void tell(const char *what, const char *path) {
    char line[8192], log[4096];
    snprintf(log, sizeof log, "%s/flushes", getenv("LOSTWRITES_LOG"));
    int out = real_open64(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    int length = snprintf(line, sizeof line, "%s %s\n", what, path);
    if (out < 0)
        broken(log);
    put(out, line, length);
    close(out);
}

static long number_in(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static int flush(int fd, int (*real)(int)) {
    char path[4096], id[128], kind = '-';
    if (!below(fd, path, sizeof path))
        return real(fd);
    id_of(fd, "", AT_EMPTY_PATH, id, sizeof id, &kind);
    if (!id[0])
        return -1;
    pthread_mutex_lock(&turn);
    if (counted_by != getpid()) { /* a fork counts for itself */
        counted_by = getpid();
        flushes = 0;
    }
    flushes++;
    if (flushes == number_in("LOSTWRITES_KILL")) {
        tell("killed", path);
        kill(getpid(), SIGKILL);
    }
    int failed = flushes == number_in("LOSTWRITES_FAIL");
    if (failed) {
        tell("failed", path);
        if (kind == 'f')
            keep_poison(fd, id);
    } else {
        tell(kind == 'd' ? "folder" : "file", path);
        if (kind == 'd')
            keep_entries(fd, id);
        else
            keep_content(fd, "content", id);
    }
    pthread_mutex_unlock(&turn);
    if (failed)
        errno = EIO;
    return failed ? -1 : 0;
}

int fsync(int fd) { return flush(fd, real_fsync); }
int fdatasync(int fd) { return flush(fd, real_fdatasync); }

/* A file that was cut has new pages: what an earlier flush lost is not in them. */
static void made_new(int fd) {
    char path[4096], id[128], kind = '-';
    int number = errno;
    if (below(fd, path, sizeof path)) {
        id_of(fd, "", AT_EMPTY_PATH, id, sizeof id, &kind);
        snprintf(path, sizeof path, "%s/poison/%s", getenv("LOSTWRITES_LOG"), id);
        unlink(path);
        snprintf(path, sizeof path, "%s/before/%s", getenv("LOSTWRITES_LOG"), id);
        unlink(path);
    }
    errno = number;
}

int ftruncate(int fd, off_t size) {
    int done = real_ftruncate(fd, size);
    if (!done)
        made_new(fd);
    return done;
}

int ftruncate64(int fd, off64_t size) {
    int done = real_ftruncate64(fd, size);
    if (!done)
        made_new(fd);
    return done;
}

#define OPENED(call)                                                                               \
    mode_t mode = 0;                                                                               \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                                         \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        mode = va_arg(more, mode_t);                                                               \
        va_end(more);                                                                              \
    }                                                                                              \
    int fd = call;                                                                                 \
    if (fd >= 0 && (flags & O_TRUNC))                                                              \
        made_new(fd);                                                                              \
    return fd

int open(const char *path, int flags, ...) { OPENED(real_open(path, flags, mode)); }
int open64(const char *path, int flags, ...) { OPENED(real_open64(path, flags, mode)); }
int openat(int at, const char *path, int flags, ...) { OPENED(real_openat(at, path, flags, mode)); }
int openat64(int at, const char *path, int flags, ...) {
    OPENED(real_openat64(at, path, flags, mode));
}
