//go:build !unix

package membership

import "os"

// lockName returns "", because files have no locks on this system.
func lockName(*os.File) string { return "" }
