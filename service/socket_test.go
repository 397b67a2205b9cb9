package service_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/armature-go/armature/service"
)

// TestSocketMode: at no moment can another user connect to a Unix socket, even if the process has the umask 0. The child process
// reads the mode of the socket while it starts and stops the listener many times.
func TestSocketMode(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only on Linux the file of a socket gets the mode that the socket had before bind")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "SERVICE_TEST_CHILD=socket", "SERVICE_TEST_SOCKET="+filepath.Join(t.TempDir(), "s.sock"))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "modes: map[600:") || strings.Count(string(out), ":") != 2 {
		t.Errorf("%v: %s", err, out)
	}
}

// socketModes prints how often the socket of a listener was seen with each mode.
func socketModes(path string) int {
	syscall.Umask(0)
	slog.SetDefault(quiet())
	var done sync.WaitGroup
	stop := make(chan struct{})
	seen := map[string]int{}
	done.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if info, err := os.Lstat(path); err == nil {
				seen[fmt.Sprintf("%o", info.Mode().Perm())]++
			}
		}
	})
	for range 500 {
		p := service.HTTP("unix:"+path, http.NotFoundHandler())
		if err := p.Start(context.Background()); err != nil {
			fmt.Println(err)
			return 1
		}
		if err := p.Stop(context.Background()); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	close(stop)
	done.Wait()
	fmt.Println("modes:", seen)
	return 0
}
