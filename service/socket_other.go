//go:build !unix

package service

import "syscall"

// restrictSocket does nothing on this system.
func restrictSocket(string, string, syscall.RawConn) error { return nil }
