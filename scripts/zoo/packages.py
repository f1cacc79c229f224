"""The Debian font packages: which ones, and how they get into the work folder without being installed."""

import shutil
import subprocess
from pathlib import Path

from zoo.problem import Problem

_LIST = """
fonts-dejavu-core fonts-dejavu-extra fonts-freefont-ttf fonts-liberation fonts-noto-core fonts-noto-cjk
fonts-croscore fonts-adf-accanthis fonts-adf-baskervald fonts-adf-berenis fonts-adf-gillius fonts-adf-ikarius
fonts-adf-irianis fonts-adf-libris fonts-adf-mekanus fonts-adf-romande fonts-adf-solothurn fonts-adf-switzera
fonts-adf-tribun fonts-adf-universalis fonts-adf-verana fonts-averia-sans-gwf fonts-averia-serif-gwf fonts-b612
fonts-cabin fonts-cantarell fonts-cardo fonts-comfortaa fonts-comic-neue fonts-crosextra-caladea
fonts-crosextra-carlito fonts-dosis fonts-ebgaramond fonts-essays1743 fonts-femkeklaver fonts-dkg-handwriting
fonts-dustin fonts-breip fonts-ecolier-court fonts-gfs-artemisia fonts-gfs-baskerville fonts-gfs-bodoni-classic
fonts-gfs-complutum fonts-gfs-didot fonts-gfs-didot-classic fonts-gfs-gazis fonts-gfs-neohellenic fonts-gfs-olga
fonts-gfs-porson fonts-gfs-solomos fonts-gfs-theokritos fonts-inconsolata fonts-inter fonts-jura fonts-junicode
fonts-lato fonts-linuxlibertine fonts-lmodern fonts-cmu fonts-open-sans fonts-oldstandard fonts-paratype
fonts-play fonts-quattrocento fonts-quicksand fonts-roboto-unhinted fonts-roboto-slab fonts-sil-andika
fonts-sil-charis fonts-sil-gentiumplus fonts-texgyre fonts-tuffy fonts-urw-base35 fonts-vollkorn
fonts-humor-sans fonts-isabella fonts-hack-ttf fonts-jetbrains-mono fonts-fantasque-sans fonts-anonymous-pro
fonts-ubuntu-title fonts-yanone-kaffeesatz fonts-opendyslexic fonts-oxygen fonts-stix culmus culmus-fancy
fonts-sil-ezra fonts-kacst fonts-kacst-one fonts-arabeyes fonts-farsiweb fonts-hosny-amiri
fonts-sil-scheherazade fonts-sil-lateef fonts-sil-harmattan fonts-ukij-uyghur fonts-freefarsi fonts-paktype
fonts-nafees fonts-hosny-thabit fonts-tlwg-garuda-ttf fonts-tlwg-kinnari-ttf fonts-tlwg-laksaman-ttf
fonts-tlwg-loma-ttf fonts-tlwg-mono-ttf fonts-tlwg-norasi-ttf fonts-tlwg-purisa-ttf fonts-tlwg-sawasdee-ttf
fonts-tlwg-typewriter-ttf fonts-tlwg-typist-ttf fonts-tlwg-typo-ttf fonts-tlwg-umpush-ttf fonts-tlwg-waree-ttf
fonts-sipa-arundina fonts-lohit-deva fonts-deva-extra fonts-gargi fonts-nakula fonts-sahadeva fonts-sarai
fonts-samyak-deva fonts-sil-annapurna fonts-aksharyogini2 fonts-ipafont-gothic fonts-ipafont-mincho
fonts-takao-gothic fonts-vlgothic fonts-mona fonts-sawarabi-gothic fonts-sawarabi-mincho fonts-umeplus
fonts-kouzan-mouhitsu fonts-aoyagi-kouzan-t fonts-aoyagi-soseki fonts-motoya-l-cedar fonts-motoya-l-maruberi
fonts-mplus fonts-migmix fonts-dotgothic16 fonts-klee fonts-rampart fonts-reggae fonts-rocknroll fonts-stick
fonts-yusei-magic fonts-horai-umefont fonts-konatu fonts-kiloji fonts-seto fonts-yozvox-yozfont-standard-kana
fonts-yozvox-yozfont-cute fonts-yozvox-yozfont-antique fonts-misaki fonts-morisawa-bizud-gothic
fonts-morisawa-bizud-mincho fonts-dejima-mincho fonts-oradano-mincho-gsrr fonts-nanum fonts-nanum-extra
fonts-baekmuk fonts-unfonts-core fonts-unfonts-extra fonts-alee fonts-lexi-gulim fonts-lexi-saebom
fonts-woowa-bm fonts-naver-d2coding fonts-bpg-georgian fonts-beng-extra fonts-lohit-beng-bengali
fonts-lohit-taml fonts-samyak-taml fonts-meera-inimai fonts-taml fonts-smc-anjalioldlipi fonts-smc-chilanka
fonts-smc-dyuthi fonts-smc-gayathri fonts-smc-karumbi fonts-smc-keraleeyam fonts-smc-manjari fonts-smc-meera
fonts-smc-rachana fonts-smc-raghumalayalamsans fonts-smc-suruma fonts-smc-uroob fonts-lohit-mlym
fonts-samyak-mlym fonts-rit-sundar fonts-telu-extra fonts-teluguvijayam fonts-lohit-telu fonts-gujr-extra
fonts-kalapi fonts-samyak-gujr fonts-lohit-gujr fonts-yrsa-rasa fonts-guru-extra fonts-lohit-guru fonts-khmeros
fonts-sil-mondulkiri fonts-sil-mondulkiri-extra fonts-senamirmir-washra fonts-sil-abyssinica fonts-lao
fonts-lohit-knda fonts-gubbi fonts-navilu fonts-orya-extra fonts-lohit-orya
"""
PACKAGES = tuple(_LIST.split())


def download(folder: Path) -> None:
    """Puts the `.deb` of every package into `folder`; what is already there stays."""
    if missing := [tool for tool in ("apt-get", "dpkg") if not shutil.which(tool)]:
        raise Problem(f"{' and '.join(missing)} not found: the fonts come from Debian packages; use Debian or Ubuntu")
    folder.mkdir(parents=True, exist_ok=True)
    present = {file.name.partition("_")[0] for file in folder.glob("*.deb")}
    wanted = [name for name in PACKAGES if name not in present]
    if not wanted:
        return
    print(f"fonts: downloading {len(wanted)} Debian packages (about 520 MB in all)", flush=True)
    done = subprocess.run(["apt-get", "download", *wanted], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise Problem(f"apt-get download failed ({last}): run `apt-get update` first; Debian main must be enabled")


def unpack(folder: Path, target: Path) -> None:
    """Unpacks every `.deb` of `folder` into `target/<package>`; a package is there whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    part = target / ".part"
    for package in PACKAGES:
        if (target / package).exists():
            continue
        shutil.rmtree(part, ignore_errors=True)
        deb = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg", "-x", str(deb), str(part)], check=True)
        part.rename(target / package)
