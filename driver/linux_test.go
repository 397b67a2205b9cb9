package driver_test

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// stopSelf makes the whole process hang, as a debugger or a failed disk would. The
// signal takes effect with a delay. So after the signal stopSelf blocks, and never returns.
func stopSelf() error {
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGSTOP); err != nil {
		return err
	}
	select {}
}

func limits() string {
	var files, data unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &files)
	_ = unix.Getrlimit(unix.RLIMIT_DATA, &data)
	return fmt.Sprintf("%d files, %d MiB", files.Max, data.Max>>20)
}
