// Preloaded: from some call on, calls of one kind on files of one name fail, or stop the process once.
//
// FAULT_CALL: read, write, sync or range (sync_file_range). FAULT_PATH: what the file's path contains.
// FAULT_SKIP: how many such calls go well. FAULT_ERRNO: what the others fail with; 0: SIGSTOP, once, and go on.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int calls;

static int fails(const char* kind, int fd) {
  const char *call = getenv("FAULT_CALL"), *path = getenv("FAULT_PATH");
  if (!call || !path || strcmp(call, kind)) return 0;
  char link[64], name[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, name, sizeof name - 1);
  if (size < 0) return 0;
  name[size] = 0;
  if (!strstr(name, path)) return 0;
  int number = __atomic_fetch_add(&calls, 1, __ATOMIC_SEQ_CST), skip = atoi(getenv("FAULT_SKIP"));
  int error = atoi(getenv("FAULT_ERRNO"));
  if (number < skip) return 0;
  if (error == 0) {
    if (number == skip) raise(SIGSTOP);
    return 0;
  }
  errno = error;
  return 1;
}

#define WRAP(result, name, kind, fd, parameters, arguments)            \
  result name parameters {                                             \
    static result(*real) parameters;                                   \
    if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name);   \
    return fails(kind, fd) ? (result)-1 : real arguments;              \
  }

WRAP(ssize_t, read, "read", fd, (int fd, void* data, size_t size), (fd, data, size))
WRAP(ssize_t, pread, "read", fd, (int fd, void* data, size_t size, off_t at), (fd, data, size, at))
WRAP(ssize_t, pread64, "read", fd, (int fd, void* data, size_t size, off64_t at), (fd, data, size, at))
WRAP(ssize_t, preadv, "read", fd, (int fd, const struct iovec* v, int n, off_t at), (fd, v, n, at))
WRAP(ssize_t, preadv64, "read", fd, (int fd, const struct iovec* v, int n, off64_t at), (fd, v, n, at))
WRAP(ssize_t, write, "write", fd, (int fd, const void* data, size_t size), (fd, data, size))
WRAP(ssize_t, pwrite, "write", fd, (int fd, const void* data, size_t size, off_t at), (fd, data, size, at))
WRAP(ssize_t, pwrite64, "write", fd, (int fd, const void* data, size_t size, off64_t at), (fd, data, size, at))
WRAP(ssize_t, sendfile, "write", out, (int out, int in, off_t* at, size_t size), (out, in, at, size))
WRAP(ssize_t, sendfile64, "write", out, (int out, int in, off64_t* at, size_t size), (out, in, at, size))
WRAP(ssize_t, copy_file_range, "write", out, (int in, off64_t* from, int out, off64_t* to, size_t size, unsigned flags),
     (in, from, out, to, size, flags))
WRAP(int, ftruncate, "write", fd, (int fd, off_t size), (fd, size))
WRAP(int, ftruncate64, "write", fd, (int fd, off64_t size), (fd, size))
WRAP(int, fsync, "sync", fd, (int fd), (fd))
WRAP(int, fdatasync, "sync", fd, (int fd), (fd))
WRAP(int, sync_file_range, "range", fd, (int fd, off64_t at, off64_t size, unsigned flags), (fd, at, size, flags))
