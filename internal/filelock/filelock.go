// Package filelock locks open files. The kernel releases the lock when the process ends, even if it is
// killed.
package filelock
