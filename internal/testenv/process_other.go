//go:build !linux

package testenv

import (
	"os"
	"os/exec"
)

// Without Linux's process groups and parent-death signals, only the program itself can be
// ended.
var (
	sigTerm   = os.Interrupt
	sigPause  = os.Interrupt
	sigResume = os.Interrupt
)

func isolateProcess(*exec.Cmd) {}

// SignalGroup sends sig to the program.
func (p *Process) SignalGroup(sig os.Signal) { _ = p.Signal(sig) }

func (p *Process) paused() bool { return true }

// EndWithParent does nothing outside of Linux.
func EndWithParent() {}
