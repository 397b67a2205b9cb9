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

func isolateProcess(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// SignalGroup sends sig to the program's process group. It does nothing if no process of
// the group is left.
func (p *Process) SignalGroup(sig os.Signal) {
	if s, ok := sig.(syscall.Signal); ok {
		_ = syscall.Kill(-p.PID(), s) // an error means that no process of the group is left
	}
}

// paused reports whether every thread of the program has stopped. Some threads still run for
// a short time after SIGSTOP.
func (p *Process) paused() bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
	for _, name := range stats {
		// The state follows the name, which is in parentheses and may have any characters.
		raw, err := os.ReadFile(name)
		if i := bytes.LastIndexByte(raw, ')'); err == nil && (i+2 >= len(raw) || raw[i+2] != 'T') {
			return false
		}
	}
	return true
}

// EndWithParent makes the kernel send SIGTERM to this process when its parent dies, because
// "go run" does not forward signals.
func EndWithParent() {
	const prSetPdeathsig = 1
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetPdeathsig, uintptr(syscall.SIGTERM), 0)
}
