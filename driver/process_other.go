//go:build !linux

package driver

import "github.com/armature-go/armature/fault"

// secure has nothing to do on this system. The program ends with its standard input, which the system closes when the
// worker ends.
func (p *process) secure(...string) error {
	if p.cfg.User != "" || p.cfg.MaxFiles != 0 || p.cfg.MaxMemoryMiB != 0 {
		return fault.New(fault.Unimplemented, "the options plugin_user, plugin_max_files and plugin_max_memory_mib work on Linux only")
	}
	return nil
}

// executeOpen does nothing on this system: the file is executed by its name. Between the check and the execution only its
// owner and root could replace it.
func (p *process) executeOpen() {}

// startAndWait starts the program, sends the result of the start, and waits for the program's end.
func (p *process) startAndWait(started chan<- error) {
	err := p.cmd.Start()
	if err == nil {
		p.setRunning()
	}
	started <- err
	if err != nil {
		return
	}
	p.status = p.cmd.Wait()
	close(p.exited)
}
