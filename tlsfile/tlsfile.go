// Package tlsfile makes the TLS configuration of a client from files, and judges the files of private
// keys, for clients and servers:
//
//	cfg, err := tlsfile.Client{CAFile: "/etc/ssl/openstack-ca.pem"}.Config()
//	bus, err := amqpbus.New(amqpbus.Config{URLs: []string{"amqps://user:pw@rabbit/"}, TLS: cfg})
//
// It makes no certificates, and has no option that switches the verification off.
package tlsfile

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"

	"github.com/armature-go/armature/fault"
)

// Client names the files of a client, all in PEM form. The zero value trusts the system's
// authorities and shows no certificate.
type Client struct {
	// CAFile has the authorities that are trusted instead of the system's. It is read once.
	CAFile string
	// CertFile and KeyFile are the certificate that the client shows, and its private key, which
	// may be in one file. They are read for each connection, so that they can be renewed. Both or
	// none. For the key see [Pair].
	CertFile, KeyFile string
	// ServerName is the name that the server's certificate must have, if it is not that of the URL.
	ServerName string
}

// Config reads the files and returns the configuration: TLS 1.2 or later, and the server's
// certificate is verified. Invalid: a file cannot be read or has something else in it, or one of
// CertFile and KeyFile is missing; Denied: others can read the key. The error names the file.
func (c Client) Config() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pool, err := Pool(c.CAFile)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = pool
	}
	if c.CertFile == "" && c.KeyFile == "" {
		return cfg, nil
	}
	if c.CertFile == "" || c.KeyFile == "" {
		return nil, fault.New(fault.Invalid, "a client certificate needs two files: certificate %q and key %q", c.CertFile, c.KeyFile)
	}
	if _, err := Pair(c.CertFile, c.KeyFile); err != nil {
		return nil, err
	}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := Pair(c.CertFile, c.KeyFile)
		return &pair, err
	}
	return cfg, nil
}

// Pool reads a file of authorities. Invalid: it cannot be read, or has no certificate.
func Pool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.New(fault.Invalid, "file of authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.Invalid, "file of authorities: %s has no certificate in PEM form", file)
	}
	return pool, nil
}

// Pair reads a certificate and its private key. Denied: others can read the key. As PostgreSQL has
// it, the file belongs to the process's user and has mode 0600 or less, or it belongs to root
// and has mode 0640 or less, so that a group such as ssl-cert may read it. Invalid: a file cannot
// be read, or they do not fit.
func Pair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return tls.Certificate{}, fault.New(fault.Invalid, "certificate: %w", err)
	}
	key, err := readKey(keyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fault.New(fault.Invalid, "certificate %s with key %s: %w", certFile, keyFile, err)
	}
	return pair, nil
}

// readKey judges the file that it reads, not one of the same name.
func readKey(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fault.New(fault.Invalid, "private key: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	info, err := f.Stat()
	if err != nil {
		return nil, fault.New(fault.Invalid, "private key: %w", err)
	}
	if err := checkKey(file, info); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(f)
	if err != nil {
		return nil, fault.New(fault.Invalid, "private key: %w", err)
	}
	return raw, nil
}

func checkKey(file string, info fs.FileInfo) error {
	uid, known := owner(info)
	self := os.Geteuid()
	mode, forbidden := info.Mode().Perm(), fs.FileMode(0o077)
	switch {
	case !known: // the system has no owners and modes of this kind
		return nil
	case uid == 0:
		forbidden = 0o037
	case uid != self:
		return fault.New(fault.Denied, "private key %s belongs to user %d, who can read it: it must belong to root or to user %d, which runs this process", file, uid, self)
	}
	if mode&forbidden != 0 {
		return fault.New(fault.Denied, "private key %s has mode %04o, so that others can read or change it: "+
			"chmod 0600, or 0640 if it belongs to root", file, mode)
	}
	return nil
}

// Failure returns what is wrong, in words and with the code Denied or Precondition, if err is that of
// a connection that failed for TLS, and nil if it is not: no second attempt mends it.
//
//   - Denied: the server's certificate is not trusted or has another name, or the server does not
//     take the client's.
//   - Precondition: the server does not speak TLS.
func Failure(err error) error {
	if fault.CodeOf(err) == fault.Denied || fault.CodeOf(err) == fault.Precondition {
		return nil // it has a code
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fault.New(fault.Denied, "the server's certificate is refused: %w", err)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fault.New(fault.Precondition, "TLS is asked for, and the server does not speak TLS on this port: %w", err)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" { // an alert, see crypto/tls
		return fault.New(fault.Denied, "the server refuses the TLS connection, perhaps for want of a client certificate that it trusts: %w", err)
	}
	return nil
}
