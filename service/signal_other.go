//go:build !unix

package service

import "syscall"

// Signals that nobody can send here.
const (
	sigReload = syscall.Signal(-1)
	sigReport = syscall.Signal(-2)
)

func monotonic() string { return "0" }
