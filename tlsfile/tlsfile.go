// Package tlsfile makes the TLS configuration of a client from files:
//
//	cfg, err := tlsfile.Client{CAFile: "/etc/ssl/openstack-ca.pem"}.Config()
//	bus, err := amqpbus.New(amqpbus.Config{URLs: []string{"amqps://user:pw@rabbit/"}, TLS: cfg})
//
// For clients and servers, [Pair] reads a certificate, and checks that other users can neither read nor change its private
// key. The package does not make certificates. It has no option that switches verification off.
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

// Client names the TLS files of a client. All are in PEM form. The zero value trusts the system's
// authorities and sends no certificate.
type Client struct {
	// CAFile has the certificate authorities that the client trusts. Default: the system's
	// authorities. [Client.Config] reads it once: a change of the file takes effect after a restart.
	CAFile string
	// CertFile and KeyFile are the client's certificate and its private key. Set both or neither;
	// one file may have both. They are read for each connection, so that a renewed
	// certificate is used without a restart. A connection fails with Denied or Invalid if the
	// renewed files are wrong, see [Pair].
	CertFile, KeyFile string
	// ServerName is the name that the server's certificate must have. Default: the name of the
	// host to which the client connects.
	ServerName string
}

// Config reads the files and returns the client's configuration: TLS 1.2 or later, and the server's
// certificate is always verified. The caller owns the result. Errors, each with the names of the
// files:
//
//   - Invalid: a file cannot be read or is not valid PEM; it has no certificate or key; the key does not
//     match the certificate; or only one of CertFile and KeyFile is set.
//   - Denied: other users can read or change the private key, see [Pair].
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
		return nil, fault.New(fault.Invalid, "client certificate: set both files or neither: certificate %q, private key %q", c.CertFile, c.KeyFile)
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

// Pool reads the certificate authorities in file, in PEM form. Invalid: the file cannot be read, or has
// no certificate.
func Pool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.New(fault.Invalid, "read certificate authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.Invalid, "read certificate authorities: %s has no certificate in PEM form", file)
	}
	return pool, nil
}

// Pair reads a certificate and its private key, in PEM form. Errors:
//
//   - Denied: other users can read or change the key. The key file must belong to the process's user
//     and have no permissions beyond mode 0600, or belong to root and have none beyond mode 0640, so that
//     a group such as ssl-cert may read it. The owner may also have permission to execute. The rule is
//     PostgreSQL's. It does not apply to systems without such owners and modes.
//   - Invalid: a file cannot be read or has no valid PEM, or the key does not match the certificate.
func Pair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return tls.Certificate{}, fault.New(fault.Invalid, "read certificate: %w", err)
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

// readKey reads a private key and checks its owner and mode. It checks the open file, not its name:
// another file can get the name between the check and the read.
func readKey(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fault.New(fault.Invalid, "read private key: %w", err)
	}
	defer f.Close() //nolint:errcheck // the file is only read
	info, err := f.Stat()
	if err != nil {
		return nil, fault.New(fault.Invalid, "read private key: %w", err)
	}
	if err := checkKeyMode(file, info); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(f)
	if err != nil {
		return nil, fault.New(fault.Invalid, "read private key: %w", err)
	}
	return raw, nil
}

// checkKeyMode returns Denied if other users can read or change the private key, by the rule of [Pair].
func checkKeyMode(file string, info fs.FileInfo) error {
	uid, known := fileOwner(info)
	self := os.Geteuid()
	mode, forbidden := info.Mode().Perm(), fs.FileMode(0o077)
	switch {
	case !known: // the system has no such owners and modes
		return nil
	case uid == 0:
		forbidden = 0o037
	case uid != self:
		return fault.New(fault.Denied, "private key %s belongs to user %d, who can read it: "+
			"it must belong to root or to user %d, the user of this process", file, uid, self)
	}
	if mode&forbidden != 0 {
		return fault.New(fault.Denied, "private key %s has mode %04o, so that other users can read or change it: "+
			"run chmod 0600, or chmod 0640 if the file belongs to root", file, mode)
	}
	return nil
}

// Failure explains the error of a connection that failed because of TLS. It returns an error that wraps err, or nil if
// err has another cause, or already has the code Denied or Precondition. Another attempt also fails, until the files or
// the server are changed. Codes:
//
//   - Denied: the server's certificate is not trusted or has another name, or the server ends the TLS
//     handshake with an alert, for example because it rejects the client's certificate.
//   - Precondition: the server does not use TLS.
func Failure(err error) error {
	if fault.CodeOf(err) == fault.Denied || fault.CodeOf(err) == fault.Precondition {
		return nil // err is explained already
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fault.New(fault.Denied, "the server's certificate is not trusted: %w", err)
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fault.New(fault.Precondition, "the client uses TLS, but the server does not use TLS on this port: %w", err)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" { // an alert, see crypto/tls
		return fault.New(fault.Denied, "the server rejects the TLS connection, perhaps because it requires a client certificate that it trusts: %w", err)
	}
	return nil
}
