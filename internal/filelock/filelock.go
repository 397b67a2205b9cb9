// Package filelock locks open files. The lock is advisory: it holds off only callers of this package. The kernel releases
// the lock when the process ends, even if it is killed. On systems other than Unix there are no locks, see [Supported].
package filelock
