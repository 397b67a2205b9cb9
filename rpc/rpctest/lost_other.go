//go:build !unix

package rpctest

import (
	"errors"
	"os"
)

func pause(*os.Process) error { return errors.ErrUnsupported }
