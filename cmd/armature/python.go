package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// pythonKeywords are the keywords of Python 3 in lower case.
const pythonKeywords = `and as assert async await break class continue def del elif else except finally for from global if import in is lambda
nonlocal not or pass raise return try while with yield`

// pythonModules are the modules of Python 3.11's standard library with names that a driver could have. Such a driver would hide the module.
const pythonModules = `abc aifc antigravity argparse array ast asynchat asyncio asyncore atexit audioop base64 bdb binascii bisect builtins bz2
calendar cgi cgitb chunk cmath cmd code codecs codeop collections colorsys compileall concurrent configparser contextlib contextvars copy copyreg
crypt csv ctypes curses dataclasses datetime dbm decimal difflib dis distutils doctest email encodings ensurepip enum errno faulthandler fcntl
filecmp fileinput fnmatch fractions ftplib functools gc genericpath getopt getpass gettext glob graphlib grp gzip hashlib heapq hmac html http
idlelib imaplib imghdr imp importlib inspect io ipaddress itertools json keyword lib2to3 linecache locale logging lzma mailbox mailcap marshal
math mimetypes mmap modulefinder msilib msvcrt multiprocessing netrc nis nntplib nt ntpath nturl2path numbers opcode operator optparse os
ossaudiodev pathlib pdb pickle pickletools pipes pkgutil platform plistlib poplib posix posixpath pprint profile pstats pty pwd pyclbr pydoc
pyexpat queue quopri random re readline reprlib resource rlcompleter runpy sched secrets select selectors shelve shlex shutil signal site smtpd
smtplib sndhdr socket socketserver spwd sqlite3 ssl stat statistics string stringprep struct subprocess sunau symtable sys sysconfig syslog
tabnanny tarfile telnetlib tempfile termios textwrap this threading time timeit tkinter token tokenize tomllib trace traceback tracemalloc tty
turtle turtledemo types typing unicodedata unittest urllib uu uuid venv warnings wave weakref webbrowser winreg winsound wsgiref xdrlib xml
xmlrpc zipapp zipfile zipimport zlib zoneinfo`

// pythonReason returns why a driver in Python cannot have the name, or "".
func pythonReason(name string) string {
	switch {
	case slices.Contains(strings.Fields(pythonKeywords), name):
		return "it is a keyword of Python"
	case slices.Contains(strings.Fields(pythonModules), name):
		return "it is a module of Python's standard library"
	case name == "google" || name == "grpc":
		return "it is a package that the driver needs"
	case name == "bin" || name == "build" || name == "tests":
		return "it is a directory of the driver's project"
	}
	return ""
}

// makeVariables are the lines of the Makefile that depend on the place of the library.
var makeVariables = regexp.MustCompile(`(?m)^(ARMATURE|LIBRARY) +\?= .*$`)

// pythonMakefile returns the Makefile with the places of the command armature and of the Python packages.
func (d *newDriver) pythonMakefile(raw []byte) ([]byte, error) {
	if strings.ContainsAny(d.replace, "$#'\"\\:\n`") {
		return nil, usageError{fmt.Errorf("--replace %s: make does not accept this path: move the clone to a path without $ # ' \" \\ : and `", d.replace)}
	}
	values := map[string]string{"ARMATURE": `go -C "` + d.replace + `" run ./cmd/armature`, "LIBRARY": d.replace + "/python"}
	if d.replace == "" {
		at := library + "@" + d.version
		values["ARMATURE"] = "go run " + library + "/cmd/armature@" + d.version
		values["LIBRARY"] = `$(shell go mod download -json ` + at + ` | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/python`
	}
	return makeVariables.ReplaceAllFunc(raw, func(line []byte) []byte {
		name := string(makeVariables.FindSubmatch(line)[1])
		return fmt.Appendf(nil, "%-8s ?= %s", name, values[name])
	}), nil
}
