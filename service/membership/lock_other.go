//go:build !unix

package membership

import "os"

// lockName returns "": files have no locks on this system.
func lockName(*os.File) string { return "" }
