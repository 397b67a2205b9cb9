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

// monotonicMicroseconds returns the time since the start of the machine, in microseconds, or "0" if the clock cannot be read.
func monotonicMicroseconds() string {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil {
		return "0"
	}
	return strconv.FormatInt(now.Nano()/1000, 10)
}
