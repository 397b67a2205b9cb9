//go:build !unix

package service

import "syscall"

// Windows and others have no such signals: these values are never received.
const (
	sigReload = syscall.Signal(-1)
	sigReport = syscall.Signal(-2)
)

func monotonicMicroseconds() string { return "0" }
