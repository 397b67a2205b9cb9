package db

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"strconv"

	"github.com/go-sql-driver/mysql"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/tlsfile"
)

// mysqlTLS takes the options about TLS out of those of a URL, and returns the configuration, nil if
// none is asked for. The names are those of SQLAlchemy and of the driver.
func mysqlTLS(host string, query url.Values) (*tls.Config, error) {
	take := func(name string) string {
		v := query.Get(name)
		delete(query, name)
		return v
	}
	wrong := func(name, why string) (*tls.Config, error) {
		return nil, fault.New(fault.Invalid, "option %s of the mysql database URL %s", name, why)
	}
	for _, name := range []string{"ssl_capath", "ssl_cipher", "allowFallbackToPlaintext"} {
		if take(name) != "" {
			return wrong(name, "is not supported")
		}
	}
	files := tlsfile.Client{CAFile: take("ssl_ca"), CertFile: take("ssl_cert"), KeyFile: take("ssl_key"), ServerName: take("ssl_server_name")}
	on, verify, names := files != tlsfile.Client{}, true, true
	if v := take("tls"); v == "skip-verify" {
		on, verify = true, false
	} else if v != "" {
		yes, err := strconv.ParseBool(v)
		switch {
		case err != nil:
			return wrong("tls", "is true, false or skip-verify: TLS that is asked for is TLS, or an error")
		case !yes && on:
			return wrong("tls", "is false beside options that are about TLS")
		}
		on = yes
	}
	for _, name := range []string{"ssl_check_hostname", "ssl_verify_identity"} {
		if v := take(name); v != "" {
			yes, err := strconv.ParseBool(v)
			switch {
			case err != nil:
				return wrong(name, "is neither true nor false")
			case !on:
				return wrong(name, "has no effect without TLS: add tls=true or ssl_ca")
			}
			names = names && yes
		}
	}
	switch {
	case !on:
		return nil, nil //nolint:nilnil // no TLS
	case !verify && (files.CAFile != "" || files.ServerName != ""):
		return wrong("tls", "is skip-verify beside ssl_ca or ssl_server_name, which would have no effect")
	}
	cfg, err := files.Config()
	if err != nil {
		return nil, fault.New(fault.CodeOf(err), "option of the mysql database URL: %w", err)
	}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	cfg.InsecureSkipVerify = !verify || !names // which the operator has asked for
	if verify && !names {
		cfg.VerifyConnection = func(s tls.ConnectionState) error { return verifyAuthority(s, cfg.RootCAs) }
	}
	return cfg, nil
}

// verifyAuthority verifies a server's certificate, but for the name in it.
func verifyAuthority(s tls.ConnectionState, roots *x509.CertPool) error {
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range s.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := s.PeerCertificates[0].Verify(opts); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
	}
	return nil
}

// tlsFailure returns why a connection failed if TLS is the reason, else nil.
func tlsFailure(err error) error {
	if errors.Is(err, mysql.ErrNoTLS) {
		return fault.New(fault.Precondition, "TLS is asked for, and the server has none: %w", err)
	}
	return tlsfile.Failure(err)
}

// loopback reports whether a host is this machine.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
