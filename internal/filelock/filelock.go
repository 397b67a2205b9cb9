// Package filelock is the lock of an open file, which the kernel frees when the process ends, however
// it ends.
package filelock
