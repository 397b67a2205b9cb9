package testenv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

const (
	sigTerm   = syscall.SIGTERM
	sigPause  = syscall.SIGSTOP
	sigResume = syscall.SIGCONT
)

func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// SignalGroup sends sig to the program's process group, if any of it is left.
func (p *Process) SignalGroup(sig os.Signal) {
	if s, ok := sig.(syscall.Signal); ok {
		_ = syscall.Kill(-p.PID(), s) // its only error: nobody is left
	}
}

// paused reports whether every thread of the program has been stopped: for a
// while after the signal some still run.
func (p *Process) paused() bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
	for _, name := range stats {
		// A name in parentheses, which may have any character, is before the state.
		raw, err := os.ReadFile(name)
		if i := bytes.LastIndexByte(raw, ')'); err == nil && (i+2 >= len(raw) || raw[i+2] != 'T') {
			return false
		}
	}
	return true
}

// EndWithParent makes the kernel send SIGTERM to this process when the one
// that started it dies: "go run" does not pass signals on.
func EndWithParent() {
	const prSetPdeathsig = 1
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetPdeathsig, uintptr(syscall.SIGTERM), 0)
}
