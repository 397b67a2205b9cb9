//go:build !unix

package membership

import "os"

// lockName returns no name: the lock is none.
func lockName(*os.File) string { return "" }
