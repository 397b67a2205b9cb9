package testenv

import (
	"os"
	"os/exec"
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

// EndWithParent makes the kernel send SIGTERM to this process when the one
// that started it dies: "go run" does not pass signals on.
func EndWithParent() {
	const prSetPdeathsig = 1
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetPdeathsig, uintptr(syscall.SIGTERM), 0)
}
