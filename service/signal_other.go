//go:build !unix

package service

import "syscall"

// This system has no SIGHUP and no SIGUSR2: these values are never received.
const (
	sigReload = syscall.Signal(-1)
	sigReport = syscall.Signal(-2)
)

func monotonicMicroseconds() string { return "0" }
