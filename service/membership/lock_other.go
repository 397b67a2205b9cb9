//go:build !unix

package membership

import "os"

// lockFile does nothing on a system without locks that end with their process.
func lockFile(*os.File) (bool, error) { return true, nil }

// lockName returns no name: the lock is none.
func lockName(*os.File) string { return "" }
