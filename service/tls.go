package service

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/tlsfile"
)

// certificates holds the TLS configuration of a listener. It reads the files again when they change. It is safe for
// concurrent use.
type certificates struct {
	cfg HTTPConfig
	log *slog.Logger

	mu      sync.Mutex
	current *tls.Config
	looked  time.Time    // when the files were last compared
	seen    [3]fileState // the states of the files at the last read, even if the files could not be used
}

// fileState has the size and the time of a file. If one of them differs, the file has changed.
type fileState struct {
	size  int64
	mtime time.Time
}

// files returns the names of the files. A name may be empty.
func (c *certificates) files() [3]string {
	return [3]string{c.cfg.CertFile, c.cfg.KeyFile, c.cfg.ClientCAFile}
}

// states returns the states of the files. A file that cannot be read has the zero state.
func (c *certificates) states() (out [3]fileState) {
	for i, name := range c.files() {
		if info, err := os.Stat(name); err == nil {
			out[i] = fileState{info.Size(), info.ModTime()}
		}
	}
	return out
}

// load reads the files. On failure the old configuration stays in use.
func (c *certificates) load(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.looked, c.seen = time.Now(), c.states()
	next, err := c.read()
	if err != nil {
		return err
	}
	c.current = next
	if leaf := next.Certificates[0].Leaf; leaf != nil {
		c.log.InfoContext(ctx, "certificate read", "file", c.cfg.CertFile, "names", leaf.DNSNames, "until", leaf.NotAfter)
	}
	return nil
}

// read reads the files and returns a new configuration. It does not change c.
func (c *certificates) read() (*tls.Config, error) {
	if c.cfg.CertFile == "" || c.cfg.KeyFile == "" {
		return nil, fault.New(fault.Invalid, "certificate file %q with key file %q: HTTPS needs both files, and so does a file of authorities for clients' certificates", c.cfg.CertFile, c.cfg.KeyFile)
	}
	pair, err := tlsfile.Pair(c.cfg.CertFile, c.cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"}}
	if c.cfg.ClientCAFile == "" {
		return out, nil
	}
	out.ClientAuth = tls.RequireAndVerifyClientCert
	out.ClientCAs, err = tlsfile.Pool(c.cfg.ClientCAFile)
	if err != nil {
		return nil, fmt.Errorf("read the authorities of clients' certificates: %w", err)
	}
	return out, nil
}

// config returns the configuration for a client that connects.
func (c *certificates) config(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c.mu.Lock()
	look := time.Since(c.looked) >= c.cfg.CertInterval
	if look {
		c.looked = time.Now()
		look = c.states() != c.seen
	}
	c.mu.Unlock()
	if look {
		if err := c.load(hello.Context()); err != nil {
			c.log.ErrorContext(hello.Context(), "changed certificate rejected, old one stays in use", "error", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current, nil
}
