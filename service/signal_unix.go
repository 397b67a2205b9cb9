//go:build unix

package service

import (
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	sigReload = syscall.SIGHUP
	sigReport = syscall.SIGUSR2
)

// monotonic returns the time since the machine's start, in microseconds.
func monotonic() string {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil {
		return "0"
	}
	return strconv.FormatInt(now.Nano()/1000, 10)
}
