// Package filelock locks open files. The lock is advisory: only callers of this package take notice of it. The kernel releases
// the lock when the process ends, even if the process is killed. Only Unix systems have locks, see [Supported].
package filelock
